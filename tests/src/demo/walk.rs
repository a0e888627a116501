//! One recipe on the running firewall: wanted against got.

use std::{
    collections::BTreeMap,
    io::Write,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use ringwall_testbed::{
    appliance::Appliance,
    netns::Netns,
    probe::{Attempt, Outcome, Service, attempt_all},
    topology::Bed,
};
use serde_json::{Value, json};

use super::{Demo, EXPORTED, judge, recipe::Recipe, show::Look};

/// How long an attempt may take: a lost SYN is sent again after a second.
const WITHIN: Duration = Duration::from_millis(1300);
/// How long a second attempt may take, where the first should have been answered and was not.
const PATIENT: Duration = Duration::from_secs(4);
/// Attempts made at a time.
const AT_ONCE: usize = 320;

/// An attempt, and what is known about it beforehand.
struct Trial<'a> {
    from: String,
    to: String,
    ns: &'a Netns,
    source: Option<IpAddr>,
    from_ip: IpAddr,
    to_ip: IpAddr,
    service: Service,
    /// Index of the promise that it tests.
    promise: Option<usize>,
    wanted: bool,
    /// Who has to answer.
    server: Option<String>,
}

impl<'a> Trial<'a> {
    fn attempt(&self) -> Attempt<'a> {
        Attempt {
            from: self.ns,
            source: self.source,
            to: self.to_ip,
            service: self.service,
        }
    }
}

impl Demo {
    pub(super) fn walk(
        &mut self,
        bed: &Bed,
        appliance: &Appliance,
        recipe: &Recipe,
        number: usize,
        of: usize,
    ) -> anyhow::Result<()> {
        let show = self.show;
        show.progress(&format!("[{number}/{of}] {}: applying", recipe.title));
        let adoption = appliance.apply(&recipe.objects)?;
        let scratch = bed.folder().join("recipes");
        let cluster = judge::cluster(recipe, &scratch)?;
        let mut trials = trials(bed, recipe);
        for trial in &mut trials {
            trial.wanted = judge::verdict(&cluster, trial.from_ip, trial.to_ip, trial.service).allow();
        }
        show.progress(&format!(
            "[{number}/{of}] {}: {} attempts at once",
            recipe.title,
            trials.len()
        ));
        let mut outcomes = Vec::new();
        for part in trials.chunks(AT_ONCE) {
            let attempts: Vec<_> = part.iter().map(Trial::attempt).collect();
            outcomes.extend(attempt_all(&attempts, WITHIN)?);
        }
        // On a busy machine an answer may come late. What should be silent gets no second chance to be.
        let late: Vec<usize> = (0..trials.len())
            .filter(|index| trials[*index].wanted && outcomes[*index] == Outcome::Silence)
            .collect();
        let again: Vec<_> = late.iter().map(|index| trials[*index].attempt()).collect();
        for (index, outcome) in late.iter().zip(attempt_all(&again, PATIENT)?) {
            outcomes[*index] = outcome;
        }
        let answers = self.ask(&recipe.export(&scratch)?, &trials)?;

        let when = match adoption.event_to_adopted {
            Some(time) => format!(
                "adopted by every worker {:.1} ms after the folder changed",
                time.as_secs_f64() * 1e3
            ),
            None => "in force from the start".to_owned(),
        };
        show.line(&format!(
            "{} {}  {}",
            show.paint(Look::Accent, &format!("[{number}/{of}]")),
            show.paint(Look::Bold, &recipe.title),
            show.paint(
                Look::Dim,
                &format!("{}  generation {}, {when}", recipe.slug, adoption.generation)
            ),
        ));
        if let Some(note) = &recipe.note {
            show.line(&format!("  {note}"));
        }
        let mut others: BTreeMap<bool, usize> = BTreeMap::new();
        let mut wrong = Vec::new();
        for ((trial, outcome), answer) in trials.iter().zip(&outcomes).zip(&answers) {
            self.attempts += 1;
            let got = match outcome {
                Outcome::Answered(name) if name.is_none() || *name == trial.server => Some(true),
                Outcome::Silence => Some(false),
                _ => None,
            };
            let compiled = answer["verdict"] == if trial.wanted { "allow" } else { "deny" };
            let promise = trial.promise.and_then(|index| recipe.expect.get(index));
            let good =
                got == Some(trial.wanted) && compiled && promise.is_none_or(|one| one.allow == trial.wanted);
            if !good {
                self.failures += 1;
            }
            match promise {
                Some(promise) => {
                    let text =
                        self.describe(trial, outcome, answer, good, Some(promise.allow), &promise.text);
                    show.line(&text);
                    show.line(&show.paint(
                        Look::Dim,
                        &format!("         $ {}", command(&self.program(), recipe, trial)),
                    ));
                }
                None if good => *others.entry(trial.wanted).or_default() += 1,
                None => wrong.push(self.describe(trial, outcome, answer, good, None, "")),
            }
        }
        for line in wrong.iter().take(10) {
            show.line(line);
        }
        if wrong.len() > 10 {
            show.line(&format!("  ... and {} more", wrong.len() - 10));
        }
        show.line(&format!(
            "  {} and {} more attempts between {} ends over TCP, UDP and ICMP, IPv4 and IPv6: {} allowed, {} denied, as wanted\n",
            show.mark(wrong.is_empty()),
            others.values().sum::<usize>() + wrong.len(),
            recipe.pods.len() + 1,
            others.get(&true).unwrap_or(&0),
            others.get(&false).unwrap_or(&0),
        ));
        if !late.is_empty() {
            show.line(&format!(
                "       ({} of the allowed were answered at a second attempt only, or not at all)\n",
                late.len()
            ));
        }
        Ok(())
    }

    fn describe(
        &self,
        trial: &Trial<'_>,
        outcome: &Outcome,
        answer: &Value,
        good: bool,
        promised: Option<bool>,
        text: &str,
    ) -> String {
        let word = |allow: bool| if allow { "allow" } else { "deny " };
        let got = match outcome {
            Outcome::Answered(name) if name.is_none() || *name == trial.server => "answer ".to_owned(),
            Outcome::Answered(name) => format!("answer of {name:?}"),
            Outcome::Silence => "silence".to_owned(),
            Outcome::Refused(why) => format!("refused: {why}"),
        };
        let look = if good { Look::Good } else { Look::Bad };
        let said = promised.map_or("-    ", word);
        let family = if trial.to_ip.is_ipv6() { " over IPv6" } else { "" };
        let who = format!("{} → {} {}{family}", trial.from, trial.to, trial.service);
        let mut line = format!(
            "  {} text {said}  wanted {}  got {}  {who:<44}  {}",
            self.show.mark(good),
            word(trial.wanted),
            self.show.paint(look, &got),
            self.show.paint(Look::Accent, &reasons(answer)),
        );
        if !text.is_empty() {
            line.push_str(&format!("  \"{text}\""));
        }
        line
    }

    /// The compiled snapshot's answers, by the command that anybody can use.
    fn ask(&self, manifests: &Path, trials: &[Trial<'_>]) -> anyhow::Result<Vec<Value>> {
        let mut child = Command::new(&self.binary)
            .args(["query", "-o", "json", "--flows", "-", "--manifests"])
            .arg(manifests)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It repeats what is wrong with a policy, which the recipe's note says.
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start `ringwall query`")?;
        let flows: String = trials
            .iter()
            .map(|trial| {
                format!(
                    "{}\n",
                    flow(&trial.from_ip.to_string(), &trial.to_ip.to_string(), trial)
                )
            })
            .collect();
        let mut stdin = child.stdin.take().context("no standard input")?;
        let writer = std::thread::spawn(move || stdin.write_all(flows.as_bytes()));
        let output = child.wait_with_output().context("`ringwall query`")?;
        let _ = writer.join();
        let answers: Vec<Value> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .context("`ringwall query` answers something else than JSON")?;
        if answers.len() != trials.len() {
            bail!(
                "`ringwall query` gave {} answers to {} flows",
                answers.len(),
                trials.len()
            );
        }
        Ok(answers)
    }
}

fn flow(src: &str, dst: &str, trial: &Trial<'_>) -> Value {
    match trial.service {
        Service::Tcp(port) => json!({"src": src, "dst": dst, "protocol": "TCP", "dst_port": port}),
        Service::Udp(port) => json!({"src": src, "dst": dst, "protocol": "UDP", "dst_port": port}),
        Service::Echo if trial.to_ip.is_ipv4() => {
            json!({"src": src, "dst": dst, "protocol": "ICMP", "icmp_type": 8})
        }
        Service::Echo => json!({"src": src, "dst": dst, "protocol": "ICMPv6", "icmp_type": 128}),
    }
}

/// The command that judges the same flow.
fn command(program: &str, recipe: &Recipe, trial: &Trial<'_>) -> String {
    // Two names mean IPv4.
    let end = |name: &str, ip: IpAddr| {
        if recipe.pods.contains_key(name) && ip.is_ipv4() {
            name.to_owned()
        } else {
            ip.to_string()
        }
    };
    let flow = flow(
        &end(&trial.from, trial.from_ip),
        &end(&trial.to, trial.to_ip),
        trial,
    );
    format!(
        "echo '{flow}' | {program} query --manifests {EXPORTED}/{} --flows -",
        recipe.slug
    )
}

/// Which policy and rule decided, from the answer of `query`.
fn reasons(answer: &Value) -> String {
    if let Some(error) = answer["error"].as_str() {
        return format!("query: {error}");
    }
    let denied = answer["verdict"] == "deny";
    let mut parts: Vec<String> = Vec::new();
    for reason in answer["reasons"].as_array().into_iter().flatten() {
        let direction = reason["direction"].as_str().unwrap_or_default();
        let effect = reason["effect"].as_str().unwrap_or_default();
        // A denial is explained by what denies.
        if denied && answer[direction] != "deny" {
            continue;
        }
        match (reason["policy"].as_str(), reason["rule"].as_u64()) {
            (Some(policy), Some(rule)) => parts.push(format!("{policy} {direction} rule {rule}")),
            (Some(policy), None) => parts.push(format!("{policy} isolates {direction}")),
            _ if ["open", "profile"].contains(&effect) => {}
            _ => parts.push(format!("{effect} {direction}")),
        }
    }
    if parts.is_empty() {
        "no policy applies".to_owned()
    } else {
        parts.join(", ")
    }
}

/// What the text promises, and every pair of ends besides.
fn trials<'a>(bed: &'a Bed, recipe: &Recipe) -> Vec<Trial<'a>> {
    let mut trials = Vec::new();
    let mut add = |from: &str, to: &str, v6: bool, service: Service, promise: Option<usize>| {
        let (Some((from_ips, from_slot)), Some((to_ips, to_slot))) = (recipe.end(from), recipe.end(to))
        else {
            return;
        };
        let pick = |ips: &[IpAddr]| ips.iter().copied().find(|ip| ip.is_ipv6() == v6);
        let (Some(from_ip), Some(to_ip)) = (pick(&from_ips), pick(&to_ips)) else {
            return;
        };
        let member = |slot: Option<usize>| slot.map_or(Some(&bed.external), |slot| bed.pods.get(slot));
        let (Some(source), Some(server)) = (member(from_slot), member(to_slot)) else {
            return;
        };
        if !bed.crosses(source, server) {
            return;
        }
        trials.push(Trial {
            from: from.to_owned(),
            to: to.to_owned(),
            ns: &source.ns,
            source: from_slot.is_none().then_some(from_ip),
            from_ip,
            to_ip,
            service,
            promise,
            wanted: false,
            server: Some(server.name.clone()),
        });
    };
    for (index, promise) in recipe.expect.iter().enumerate() {
        add(&promise.from, &promise.to, false, promise.service, Some(index));
    }
    let ends: Vec<&str> = recipe
        .pods
        .keys()
        .map(String::as_str)
        .chain(["external"])
        .collect();
    let mut others = vec![Service::Udp(53), Service::Echo];
    others.extend(recipe.ports.iter().filter(|port| **port != Service::Tcp(80)));
    others.dedup();
    for (i, from) in ends.iter().enumerate() {
        for (j, to) in ends.iter().enumerate().filter(|(j, _)| *j != i) {
            let turn = i * ends.len() + j;
            add(from, to, !turn.is_multiple_of(2), Service::Tcp(80), None);
            add(
                from,
                to,
                turn.is_multiple_of(2),
                others[turn % others.len()],
                None,
            );
        }
    }
    trials
}
