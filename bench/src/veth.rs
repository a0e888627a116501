//! Throughput of a wire that is offered more than it can forward: what the sink counts in a second. The firewall and a
//! bare AF_XDP forwarder on the same rings take turns.

use std::{process::ExitCode, time::Duration};

use crate::{
    arguments::{positive, seconds},
    generate::stream::Script,
    recorder::{Recorder, Recording},
    report::count,
    rounds::{Contender, interleave},
    samples::{Better, Plan, Row, Section, Target},
    wire::{self, Forwarder, WORKER_CPU, Wire},
};

/// Options of the benchmark.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// How often control and firewall take turns
    #[arg(long, default_value_t = 5, value_parser = positive::<usize>)]
    pub(crate) rounds: usize,
    /// How long one measurement counts, in seconds
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Flows
    #[arg(long, default_value_t = 1000, value_parser = positive::<u32>)]
    pub(crate) flows: u32,
    /// Rules that the firewall holds
    #[arg(long, default_value_t = 1000, value_parser = positive::<usize>)]
    pub(crate) rules: usize,
    #[command(flatten)]
    pub(crate) recording: Recording,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut recorder = options.recording.recorder();
    rows(options, &mut recorder)?;
    Ok(recorder.finish())
}

/// The wire against bare l2fwd.
pub(crate) fn rows(options: &Options, recorder: &mut Recorder) -> anyhow::Result<()> {
    let plan = Plan {
        id: format!("wire-{}-flows-{}-rules", options.flows, options.rules),
        title: format!(
            "wire on veth, 64-byte frames, {} flows, {} rules, flooded",
            count(options.flows.into()),
            count(options.rules as u64)
        ),
        section: Section::Throughput,
        unit: "Mpps".into(),
        better: Better::Higher,
        target: Some(Target::Ratio(0.9)),
        parameters: [("flows".to_owned(), options.flows.into())].into(),
    };
    recorder.measure(std::slice::from_ref(&plan), |machine| {
        let wire = Wire::new()?;
        let stream = wire::stream(Script::Udp, options.flows, None, false);
        let load = wire.load(&stream, 1)?;
        let time = Duration::from_secs_f64(options.seconds);
        let measure = |forwarder: anyhow::Result<Forwarder>| {
            let forwarder = forwarder?;
            let rate = load
                .opened(&forwarder)
                .and_then(|()| load.flood(wire::WARM_UP, time));
            // Also after a failure: the next one needs the ports.
            let ended = forwarder.end();
            let rate = rate?;
            ended?;
            Ok(rate)
        };
        let more = wire::room_for(options.flows.into());
        let mut contenders = [
            Contender::new(
                "ringwall",
                format!(
                    "`ringwall run` on a wire, {} rules, one worker",
                    count(options.rules as u64)
                ),
                || measure(wire.ringwall(options.rules, &more)),
            ),
            l2fwd(|| measure(wire.l2fwd())),
        ];
        let runs = interleave(options.rounds, &mut contenders);
        drop(contenders);
        Ok(vec![Row::compare(&plan, machine, &runs, 0, Some(1))])
    })
}

/// The control of everything on the wire.
pub(crate) fn l2fwd<'a>(
    measure: impl FnMut() -> anyhow::Result<crate::samples::Reading> + 'a,
) -> Contender<'a> {
    Contender::new(
        "bare l2fwd",
        format!("`l2fwd in out SECONDS {WORKER_CPU}` (dataplane/xsk/examples) on the same rings"),
        measure,
    )
}
