//! `ringwall-demo`: policy enforced on real traffic, on a topology of network namespaces made for it.
//!
//! * [`recipe`] what is shown: manifests, and what their text promises.
//! * [`walk`] one recipe on the running firewall: wanted against got.
//! * [`incidents`] a transfer revoked, the dataplane killed, the accounts.
//! * [`node`] the second half: a node beside its CNI, with Services, DNS and an overlay.

mod dns;
mod incidents;
mod judge;
mod node;
mod recipe;
mod show;
mod walk;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::Context;
use clap::Parser;
use recipe::{Recipe, SLOTS};
use ringwall_testbed::{
    appliance::{Appliance, Options, built_binary},
    preflight,
    probe::Service,
    topology::{Bed, EXTERNAL, GATEWAY, Plan, Role},
};
use show::{Look, Show};

/// Shows policy enforced on real traffic, on a topology made for it (needs root)
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "ringwall-demo", version, max_term_width = 100)]
struct DemoArgs {
    /// Walk through the recipes of this folder (each a folder or a file of manifests) instead of the built-in ones
    #[arg(long, value_name = "DIR")]
    recipes: Option<PathBuf>,
    /// Only recipes whose name contains this; no incidents, no second half
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Write each recipe's whole cluster into a folder of this one, for `query`, `matrix` and `check`, and end
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    /// Walk through the recipes on a wire between two routers instead, with the pods on both sides of it; no incidents
    #[arg(long)]
    wire: bool,
    /// Only the second half: a node beside its CNI, with Services, DNS and an overlay
    #[arg(long, conflicts_with_all = ["recipes", "only", "export", "wire"])]
    node: bool,
    /// Only say whether this machine and user can run the demo and the end-to-end tests
    #[arg(long, hide = true)]
    preflight: bool,
}

/// Where the lines of the demo say that the manifests are.
const EXPORTED: &str = "/tmp/ringwall-demo";

fn main() -> ExitCode {
    match run(&DemoArgs::parse()) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Shows everything. Status 1 where anything went otherwise than wanted, 2 where it cannot run here.
fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    if args.preflight {
        if let Some(obstacle) = preflight::obstacle() {
            anyhow::bail!("cannot run here: {obstacle}");
        }
        println!("this machine can: root, network namespaces and AF_XDP are there");
        return Ok(ExitCode::SUCCESS);
    }
    let mut recipes = recipe::load(args.recipes.as_deref())?;
    if let Some(part) = &args.only {
        recipes.retain(|recipe| recipe.slug.contains(part));
        if recipes.is_empty() {
            anyhow::bail!("no recipe's name contains `{part}`");
        }
    }
    if let Some(folder) = &args.export {
        for recipe in &recipes {
            println!("{}", recipe.export(folder)?.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(obstacle) = preflight::obstacle() {
        anyhow::bail!("the demo cannot run here: {obstacle}");
    }
    let mut demo = Demo::new(recipes)?;
    if args.wire {
        demo.run_wire()
    } else if args.node {
        demo.node()?;
        Ok(demo.finish())
    } else {
        demo.run(args.only.is_none())
    }
}

struct Demo {
    show: Show,
    /// What the demo was called as; `ringwall` is beside it.
    command: String,
    recipes: Vec<Recipe>,
    binary: PathBuf,
    begin: Instant,
    failures: usize,
    attempts: usize,
    /// Frames that the ports received before the dataplane counted.
    before_us: u64,
}

impl Demo {
    /// The `ringwall` of the commands that are shown.
    fn program(&self) -> String {
        Path::new(&self.command)
            .with_file_name("ringwall")
            .display()
            .to_string()
    }

    fn new(recipes: Vec<Recipe>) -> anyhow::Result<Self> {
        Ok(Self {
            show: Show::new(),
            command: std::env::args()
                .next()
                .unwrap_or_else(|| "ringwall-demo".to_owned()),
            recipes,
            binary: built_binary()?,
            begin: Instant::now(),
            failures: 0,
            attempts: 0,
            before_us: 0,
        })
    }

    fn run(mut self, incidents: bool) -> anyhow::Result<ExitCode> {
        let (bed, appliance) = self.set_up(Role::Routed, |_| false)?;
        self.introduce(&appliance)?;
        let recipes = std::mem::take(&mut self.recipes);
        for (index, recipe) in recipes.iter().enumerate() {
            self.walk(&bed, &appliance, recipe, index + 1, recipes.len())?;
        }
        if incidents {
            self.incidents(&bed, appliance)?;
        } else {
            drop(appliance);
        }
        drop(bed);
        if incidents {
            self.node()?;
        }
        Ok(self.finish())
    }

    /// Only what crosses a wire meets it. So the recipes are walked through with the pods divided between its ends in
    /// several ways, until each promise of their texts has crossed.
    fn run_wire(mut self) -> anyhow::Result<ExitCode> {
        let mut recipes = std::mem::take(&mut self.recipes);
        let divisions: [fn(usize) -> bool; 5] = [
            |slot| (1..8).contains(&slot),
            |slot| slot & 1 != 0,
            |slot| slot & 2 != 0,
            |slot| slot & 4 != 0,
            |slot| slot & 8 != 0,
        ];
        for (number, outside) in divisions.into_iter().enumerate() {
            self.recipes = std::mem::take(&mut recipes);
            let crosses = |recipe: &Recipe, one: &recipe::Expectation| {
                let side = |name: &str| recipe.pods.get(name).is_none_or(|slot| outside(*slot));
                side(&one.from) != side(&one.to)
            };
            let (now, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.recipes).into_iter().partition(|recipe| {
                    recipe.expect.is_empty() || recipe.expect.iter().any(|one| crosses(recipe, one))
                });
            recipes.extend(later);
            if now.is_empty() {
                continue;
            }
            self.recipes = now;
            let (bed, appliance) = self.set_up(Role::Wire, outside)?;
            let show = self.show;
            show.line(&show.paint(
                Look::Bold,
                &format!("A wire between two routers, division {} of the pods:", number + 1),
            ));
            let names = |wanted: bool| {
                (0..SLOTS)
                    .filter(|slot| outside(*slot) == wanted)
                    .map(|slot| format!("{slot}"))
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            show.line(&show.paint(
                Look::Accent,
                &format!(
                    "  pods {}  ── router ── in [ringwall run] out ── router ──  external, pods {}\n",
                    names(false),
                    names(true)
                ),
            ));
            let walked = std::mem::take(&mut self.recipes);
            for (index, recipe) in walked.iter().enumerate() {
                self.walk(&bed, &appliance, recipe, index + 1, walked.len())?;
            }
            for mut recipe in walked {
                let expect = std::mem::take(&mut recipe.expect);
                recipe.expect = expect.into_iter().filter(|one| !crosses(&recipe, one)).collect();
                if !recipe.expect.is_empty() {
                    recipes.push(recipe);
                }
            }
        }
        let left: usize = recipes.iter().map(|recipe| recipe.expect.len()).sum();
        self.show.line(&format!(
            "{left} promises have both ends on one side in every division and were not tried."
        ));
        Ok(self.finish())
    }

    /// Makes the bed and starts the firewall on it.
    fn set_up(&mut self, role: Role, outside: impl Fn(usize) -> bool) -> anyhow::Result<(Bed, Appliance)> {
        let show = self.show;
        show.line(&show.paint(Look::Bold, "ringwall demo: NetworkPolicy on real traffic"));
        show.progress("making pods, servers and the gateway");
        let bed = self.bed(role, outside)?;
        let first = self.recipes.first().context("no recipe")?;
        show.progress("starting `ringwall run`");
        let options = Options {
            host_port: role == Role::Routed,
            ..Options::default()
        };
        let appliance = Appliance::start(&bed, &self.binary, &options, &first.objects)?;
        if role == Role::Routed {
            self.before_us = incidents::frames_uncounted(&bed, &appliance)?;
        }
        Ok((bed, appliance))
    }

    fn finish(self) -> ExitCode {
        let show = self.show;
        let seconds = self.begin.elapsed().as_secs();
        show.line("");
        if self.failures == 0 {
            let text = format!(
                "All {} attempts went as wanted, in {seconds} s. Nothing is left behind.",
                self.attempts
            );
            show.line(&show.paint(Look::Good, &text));
            ExitCode::SUCCESS
        } else {
            let text = format!(
                "{} of {} attempts and checks went otherwise than wanted.",
                self.failures, self.attempts
            );
            show.line(&show.paint(Look::Bad, &text));
            ExitCode::from(1)
        }
    }

    /// A namespace for every slot, serving every port that some recipe speaks of.
    fn bed(&self, role: Role, outside: impl Fn(usize) -> bool) -> anyhow::Result<Bed> {
        let mut tcp = vec![80, 443];
        let mut udp = vec![53];
        for service in self.recipes.iter().flat_map(|recipe| &recipe.ports) {
            match service {
                Service::Tcp(port) => tcp.push(*port),
                Service::Udp(port) => udp.push(*port),
                Service::Echo => {}
            }
        }
        for ports in [&mut tcp, &mut udp] {
            ports.sort_unstable();
            ports.dedup();
        }
        let plans: Vec<_> = (0..SLOTS)
            .map(|slot| Plan {
                name: format!("slot{slot}"),
                tcp: tcp.clone(),
                udp: udp.clone(),
                outside: outside(slot),
                node: false,
            })
            .collect();
        Ok(Bed::new(role, &plans, 1)?)
    }

    fn introduce(&self, appliance: &Appliance) -> anyhow::Result<()> {
        let show = self.show;
        let status = appliance.status()?;
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let ports = status["dataplane"]["ports"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let port = ports
            .iter()
            .find(|port| port["kind"] == "pod")
            .cloned()
            .unwrap_or_default();
        let word = |key: &str| port[key].as_str().unwrap_or("?").to_owned();
        show.line(&format!(
            "Linux {}, driver {}, {} XDP, {} mode, {} worker(s): real packets through AF_XDP sockets, on virtual\n\
             links. It shows what is decided, not how fast a network card would be.\n",
            release.trim(),
            word("driver"),
            word("xdp"),
            if port["zeroCopy"] == true { "zero-copy" } else { "copy" },
            status["dataplane"]["workers"].as_array().map_or(0, Vec::len),
        ));
        let picture = [
            format!("      external {EXTERNAL}"),
            "             │".to_owned(),
            format!(" ┌── uplink {GATEWAY} ──────────────────┐"),
            " │                                      │".to_owned(),
            " │   gateway:  ringwall run             ├── host: the gateway's own kernel, a judged port too"
                .to_owned(),
            " │                                      │".to_owned(),
            " └┬─────┬─────┬─────┬─────┬─────┬─────┬─┘".to_owned(),
            "  │     │     │     │     │     │     │".to_owned(),
        ];
        for line in picture {
            show.line(&show.paint(Look::Accent, &line));
        }
        if let Some(recipe) = self.recipes.first() {
            let mut namespaces: std::collections::BTreeMap<&str, Vec<&str>> = Default::default();
            for pod in recipe.pods.keys() {
                if let Some((namespace, name)) = pod.split_once('/') {
                    namespaces.entry(namespace).or_default().push(name);
                }
            }
            let pods: Vec<_> = namespaces
                .iter()
                .map(|(namespace, pods)| format!("{namespace}: {}", pods.join(", ")))
                .collect();
            show.line(&format!("  pods, each a network namespace: {}", pods.join("; ")));
        }
        show.line(&format!(
            "\nEvery line is a real connection attempt. `text` is what the recipe's own words promise, `wanted` what the\n\
             literal evaluator says, `got` what came of it. For the command behind a line, first: \n  \
             {} --export {EXPORTED}\n",
            self.command,
        ));
        Ok(())
    }

    /// Notes one check.
    fn check(&mut self, good: bool, text: &str) {
        self.attempts += 1;
        if !good {
            self.failures += 1;
        }
        self.show.line(&format!("  {} {text}", self.show.mark(good)));
    }
}

#[cfg(test)]
mod tests;
