//! `ringwall-instructions BASELINE [--write] [MIX]...`: counts instructions per packet and stage, and compares them with the
//! baseline. `--write` makes them the baseline. Status 1 where there are more than there may be, 2 where nothing could be counted.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use ringwall_bench_memory::{
    instructions::{self, Baseline, TOTAL},
    mix::Mix,
    stages::STAGES,
};

fn main() -> ExitCode {
    match compare() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("ringwall-instructions: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all mixes need no more than they may.
fn compare() -> anyhow::Result<bool> {
    let (mut file, mut mixes, mut writes) = (None, Vec::new(), false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--write" => writes = true,
            _ if file.is_none() => file = Some(PathBuf::from(argument)),
            _ => mixes.push(argument.parse::<Mix>()?),
        }
    }
    let Some(file) = file else {
        bail!("usage: ringwall-instructions BASELINE [--write] [MIX]...");
    };
    if mixes.is_empty() {
        mixes = Mix::ALL.to_vec();
    }
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if writes && error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    let mut baseline = Baseline::read(&text).with_context(|| format!("{}", file.display()))?;
    let compiler = instructions::compiler()?;
    let program = std::env::current_exe()?.with_file_name("ringwall-memory-load");

    let heads = STAGES.iter().chain([&TOTAL]);
    println!(
        "| instructions per packet | {} |",
        heads.clone().copied().collect::<Vec<_>>().join(" | ")
    );
    println!("|---|{}", "---|".repeat(heads.clone().count()));
    let mut over = Vec::new();
    for mix in mixes {
        let counts = instructions::count(&program, mix)?;
        let cells: Vec<String> = heads
            .clone()
            .map(|stage| {
                counts
                    .get(*stage)
                    .map_or_else(String::new, |count| format!("{count:.0}"))
            })
            .collect();
        println!("| {mix} | {} |", cells.join(" | "));
        if writes {
            baseline.mixes.insert(mix.name().to_owned(), counts);
        } else {
            let exceeded = baseline.exceeded(mix, &counts, &compiler);
            over.extend(exceeded.with_context(|| format!("{}", file.display()))?);
        }
    }
    if writes {
        baseline.compiler = compiler;
        std::fs::write(&file, baseline.text()).with_context(|| format!("writing {}", file.display()))?;
    } else if baseline.compiler != compiler {
        println!(
            "The baseline was counted with {}, this is {compiler}.",
            baseline.compiler
        );
    }
    over.iter().for_each(|line| println!("{line}"));
    if !over.is_empty() {
        println!("If that is worth it, write it down: sh bench/instructions.sh --write");
    }
    Ok(over.is_empty())
}
