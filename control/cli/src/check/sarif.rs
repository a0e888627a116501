//! Findings as SARIF 2.1.0, for code hosts and editors.
//!
//! <https://docs.oasis-open.org/sarif/sarif/v2.1.0/>. Paths are relative to where the command ran, as code hosts want
//! them; columns count Unicode code points.

use ringwall_analyse::lint::{Finding, Severity, rules};
use serde_json::{Value, json};

use super::report::witness_object;

/// The log: one run with all rules and all findings.
pub(super) fn log(findings: &[&Finding]) -> Value {
    let rules: Vec<Value> = rules::ALL
        .iter()
        .map(|rule| {
            json!({
                "id": rule.id,
                "name": rule.name,
                "shortDescription": { "text": rule.summary },
                "help": { "text": rule.page, "markdown": rule.page },
                "helpUri": rule.page_path(),
                "defaultConfiguration": { "level": level(rule.severity) },
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "ringwall",
                "version": env!("CARGO_PKG_VERSION"),
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            } },
            "columnKind": "unicodeCodePoints",
            "results": findings.iter().map(|finding| result(finding)).collect::<Vec<_>>(),
        }],
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    }
}

fn result(finding: &Finding) -> Value {
    let mut result = json!({
        "ruleId": finding.id,
        "level": level(finding.severity),
        "message": { "text": message(finding) },
        "partialFingerprints": { "ringwall/v1": fingerprint(finding) },
    });
    if let Some(index) = rules::ALL.iter().position(|rule| rule.id == finding.id) {
        result["ruleIndex"] = index.into();
    }
    if let Some(place) = &finding.place {
        let mut physical = json!({ "artifactLocation": { "uri": uri(&place.file) } });
        if let Some(line) = place.line {
            physical["region"] = json!({ "startLine": line });
            if let Some(column) = place.column {
                physical["region"]["startColumn"] = column.into();
                physical["region"]["endColumn"] = (column + place.length.unwrap_or(1).max(1)).into();
            }
        }
        let mut location = json!({ "physicalLocation": physical });
        if let Some(object) = &finding.object {
            let path = finding.path.as_deref().unwrap_or_default();
            location["logicalLocations"] = json!([{
                "name": object,
                "fullyQualifiedName": format!("{object}: {path}").trim_end_matches([':', ' ']),
                "kind": "object",
            }]);
        }
        result["locations"] = json!([location]);
    }
    if let Some(witness) = &finding.witness {
        result["properties"] = json!({ "witness": witness_object(witness) });
    }
    result
}

fn message(finding: &Finding) -> String {
    let mut text = match &finding.object {
        Some(object) => format!("{object}: {}", finding.message),
        None => finding.message.clone(),
    };
    if let Some(witness) = &finding.witness {
        let verdict = if witness.allowed { "allowed" } else { "denied" };
        text.push_str(&format!(
            "\nPacket: {} -> {} {} is {verdict} ({}). Wanted: {}.",
            witness.from, witness.to, witness.service, witness.why, witness.wanted
        ));
    }
    if let Some(fix) = &finding.fix {
        text.push_str(&format!("\nFix: {fix}."));
    }
    text
}

/// Equal for one finding in two versions of a file: lines may have moved.
fn fingerprint(finding: &Finding) -> String {
    let object = finding.object.as_deref().unwrap_or_default();
    let path = finding.path.as_deref().unwrap_or_default();
    let hash = blake3::hash(format!("{}\0{object}\0{path}", finding.id).as_bytes());
    hash.to_hex().chars().take(32).collect()
}

/// A relative reference (RFC 3986): every byte that is not plain is escaped.
fn uri(file: &std::path::Path) -> String {
    let file = file.strip_prefix(".").unwrap_or(file);
    let mut uri = if file.is_absolute() {
        "file://".to_owned()
    } else {
        String::new()
    };
    for byte in file.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                uri.push(char::from(*byte))
            }
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}
