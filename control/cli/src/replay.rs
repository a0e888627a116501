//! `ringwall replay`: what the dataplane's own worker decides about each packet of a capture.

mod events;
mod report;

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, ensure};
use ringwall_compile::{Budget, Compiler, EpochKey};
use ringwall_dataplane::{
    classify::{Generation, Snapshot},
    time::Nanos,
};
use ringwall_replay::{
    capture::{CaptureError, CaptureReader, CaptureWriter, CapturedPacket, Content, Link, PacketLink},
    replay::{Answer, Replay, Verdict},
};

use self::{events::Event, report::Report};
use super::{ClusterArgs, Output, is_stdin, not_both_stdin, progress::Progress, whole_file::WholeFile};

/// Arguments of `ringwall replay`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Reads pcap and pcapng files of Ethernet, raw IP (101, 228, 229), Linux cooked
(113, 276) and loopback (0, 108) packets and passes each packet to the code that
runs in the dataplane, at the packet's time. Connections, fragments, ICMP errors
and timeouts count as on a wire. The clock never goes backwards. A capture does
not say from which side a packet came, so sources are believed. What was not
captured in full drops as truncated.

As JSON: one object per packet, with its number in the capture:

  {\"n\":1,\"verdict\":\"forward\",\"reason\":null,\"flow\":\"4f1c...\",\"generation\":1}
  {\"n\":2,\"verdict\":\"drop\",\"reason\":\"policy-ingress\",\"flow\":null,\"generation\":1}
  {\"n\":3,\"verdict\":\"pass\",\"reason\":\"arp\",\"flow\":null,\"generation\":1}

pass is what no policy is about and a wire lets through. A packet that cannot be
replayed gives {\"n\":4,\"error\":...} in its place, and the exit status is 2.

--events changes the policy during the capture. Each line of the file is a JSON
object: when, and the folder that holds from then on. The generation rises by one
with each, and established flows that are no longer allowed end with their next
packet. The time is in UTC, in seconds since 1970, or, with a plus sign, in seconds
after the first packet. Folders are relative to the file.

  {\"at\":\"2026-03-01T12:00:00.5Z\",\"manifests\":\"after\"}
  {\"at\":1772366400.5,\"manifests\":\"after\"}
  {\"at\":\"+2.5\",\"manifests\":\"after\"}

--out writes the packets that are forwarded or passed, as they are in the capture.

Exit status: 0 if every packet was replayed, whatever the verdicts; 2 for bad
input. A capture that is cut short or damaged is answered up to there, then the
status is 2: nothing is known about the rest.

Examples:
  ringwall replay --manifests ./cluster --pcap node1.pcapng
  ringwall replay --manifests ./cluster --pcap node1.pcap -o json
  ringwall replay --manifests ./before --pcap node1.pcap --events events.jsonl
  tcpdump -w - -c 1000 | ringwall replay --manifests ./cluster --pcap -
  ringwall replay --manifests ./cluster --pcap node1.pcap --out passed.pcap")]
pub struct ReplayArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Capture to replay, pcap or pcapng; - for standard input
    #[arg(long, value_name = "FILE")]
    pcap: PathBuf,
    /// Write the packets that are forwarded or passed to this file, in the capture's format
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Changes of policy during the capture, one JSON object per line; - for standard input
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Number of workers; the answers are the same for any number
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    workers: u8,
}

pub(super) fn run(args: &ReplayArgs, output: Output) -> anyhow::Result<ExitCode> {
    let manifests = ("--manifests", args.cluster.manifests.as_path());
    let pcap = ("--pcap", args.pcap.as_path());
    not_both_stdin(manifests, pcap)?;
    if let Some(events) = &args.events {
        not_both_stdin(manifests, ("--events", events))?;
        not_both_stdin(pcap, ("--events", events))?;
    }
    ensure!(
        args.out.as_deref() != Some(Path::new("-")),
        "--out -: name a file, since the answers are on standard output"
    );
    let unreadable = || format!("cannot replay {}", args.pcap.display());
    let (input, length) = open(&args.pcap).with_context(unreadable)?;
    let mut reader = CaptureReader::open(input).with_context(unreadable)?;
    if let Some((_, PacketLink::Unknown(link))) = reader.pcap() {
        return Err(anyhow::anyhow!(unsupported(link))).with_context(unreadable);
    }
    let events = match &args.events {
        Some(file) => events::read(file)?,
        None => Vec::new(),
    };
    let copy = match &args.out {
        Some(file) => {
            let header = reader.pcap().map(|(header, _)| header);
            let file = WholeFile::create(file)?;
            Some(CaptureWriter::new(file, header).context("cannot write the copy")?)
        }
        None => None,
    };
    // Lines that appear show by themselves how far it is.
    let lines_show = io::stdout().is_terminal();
    let progress = (!lines_show).then(|| Progress::new("replaying packets"));
    let mut session = Session {
        args,
        length,
        live: is_stdin(&args.pcap),
        events: events.into(),
        begun: None,
        frame: Vec::new(),
        copy,
        report: Report::new(output),
        progress,
        out: io::BufWriter::with_capacity(1 << 16, io::stdout().lock()),
    };
    let read = session.replay_all(&mut reader)?;
    session.finish()?;
    read.with_context(unreadable)?;
    Ok(match session.report.errors() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(2),
    })
}

/// The capture, and its length where it is a file.
fn open(file: &Path) -> io::Result<(Box<dyn Read>, Option<u64>)> {
    if is_stdin(file) {
        return Ok((Box::new(io::stdin().lock()), None));
    }
    let file = File::open(file)?;
    let length = file
        .metadata()
        .ok()
        .filter(std::fs::Metadata::is_file)
        .map(|it| it.len());
    Ok((Box::new(io::BufReader::with_capacity(1 << 18, file)), length))
}

fn unsupported(link: u16) -> String {
    format!(
        "link type {link} is not supported, only {}: capture on an interface of one of these",
        Link::SUPPORTED
    )
}

/// One run over a capture.
struct Session<'a> {
    args: &'a ReplayArgs,
    length: Option<u64>,
    /// Packets may be captured right now: answers appear as they come.
    live: bool,
    /// Still to come, earliest first once it has begun.
    events: std::collections::VecDeque<Event>,
    /// From the first packet on.
    begun: Option<Begun>,
    /// Memory for the frame of a packet.
    frame: Vec<u8>,
    copy: Option<CaptureWriter<WholeFile>>,
    report: Report,
    progress: Option<Progress>,
    out: io::BufWriter<io::StdoutLock<'static>>,
}

struct Begun {
    replay: Replay,
    /// Of the first packet, in nanoseconds since 1970.
    first: u64,
    /// Of the newest packet so far.
    now: u64,
    /// Snapshots of the events still to come, in the same order.
    snapshots: std::collections::VecDeque<Snapshot>,
}

impl Session<'_> {
    /// Answers packet after packet. The inner error is one of the capture: what comes before it is answered.
    ///
    /// # Errors
    /// The policy cannot be read, or the output not be written.
    fn replay_all(
        &mut self,
        reader: &mut CaptureReader<Box<dyn Read>>,
    ) -> anyhow::Result<Result<(), CaptureError>> {
        loop {
            let record = match reader.next_record() {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            };
            let copied = match &record.content {
                Content::Packet(packet) => self.answer(packet)?,
                Content::Section | Content::Description => true,
                Content::Skipped => false,
            };
            if let Some(copy) = self.copy.as_mut().filter(|_| copied) {
                copy.copy(&record).context("cannot write the copy")?;
            }
            if self.live {
                self.out.flush()?;
            }
        }
    }

    /// Answers one packet; says whether it goes on.
    fn answer(&mut self, packet: &CapturedPacket<'_>) -> anyhow::Result<bool> {
        if let Some(progress) = &self.progress {
            progress.count(packet.number);
        }
        let mut begun = match self.begun.take() {
            Some(begun) => begun,
            None => self.begin(packet.time.unwrap_or_default())?,
        };
        begun.now = begun.now.max(packet.time.unwrap_or_default());
        self.apply_events(&mut begun)?;
        let answered = self.judge(&mut begun.replay, packet);
        let elapsed = begun.now - begun.first;
        let goes_on = match answered? {
            Ok(answer) => {
                let snapshot = begun.replay.snapshot();
                self.report
                    .answer(packet, elapsed, &answer, snapshot, &mut self.out)?;
                matches!(answer.verdict, Verdict::Forward | Verdict::Pass(_))
            }
            Err(why) => {
                self.report.error(packet, elapsed, &why, &mut self.out)?;
                false
            }
        };
        self.begun = Some(begun);
        Ok(goes_on)
    }

    /// The inner error: why a packet cannot be replayed.
    fn judge(
        &mut self,
        replay: &mut Replay,
        packet: &CapturedPacket<'_>,
    ) -> anyhow::Result<Result<Answer, String>> {
        let time = packet.time.map(Nanos);
        let link = match packet.link {
            PacketLink::Known(link) => link,
            PacketLink::Unknown(link) => return Ok(Err(unsupported(link))),
            PacketLink::NoInterface(number) => {
                return Ok(Err(format!(
                    "interface {number} is not described in the packet's section, at byte {}",
                    packet.offset
                )));
            }
        };
        if packet.is_truncated() {
            return Ok(Ok(replay.truncated(time)));
        }
        link.write_frame(packet.bytes, &mut self.frame);
        let answer = replay
            .judge(&self.frame, time)
            .with_context(|| format!("packet {}", packet.number))?;
        Ok(Ok(answer))
    }

    /// Compiles all policies, now that it is known when the capture begins. So nothing is answered if one cannot be.
    fn begin(&mut self, first: u64) -> anyhow::Result<Begun> {
        self.events
            .make_contiguous()
            .sort_by_key(|event| event.at.after(first));
        let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
        let mut compile = |manifests: &Path, generation: u64| {
            let args = ClusterArgs {
                manifests: manifests.to_owned(),
                ..self.args.cluster.clone()
            };
            let compiled = compiler
                .update(&args.load()?, Generation(generation))
                .with_context(|| format!("cannot compile the policies of {}", manifests.display()))?;
            anyhow::Ok(Snapshot::from_image(&compiled.image))
        };
        let initial = compile(&self.args.cluster.manifests, 1)?;
        let snapshots = (2..)
            .zip(&self.events)
            .map(|(generation, event)| {
                compile(&event.manifests, generation).with_context(|| event.place.clone())
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Begun {
            replay: Replay::new(self.args.workers.into(), self.length, initial, Nanos(first))?,
            first,
            now: first,
            snapshots,
        })
    }

    fn apply_events(&mut self, begun: &mut Begun) -> anyhow::Result<()> {
        while let Some(event) = self
            .events
            .pop_front_if(|event| event.at.after(begun.first) <= begun.now)
        {
            if let Some(snapshot) = begun.snapshots.pop_front() {
                begun.replay.publish(snapshot);
            }
            let generation = begun.replay.generation();
            self.report.event(generation, &event.manifests, &mut self.out)?;
        }
        Ok(())
    }

    /// Writes what comes at the end.
    fn finish(&mut self) -> anyhow::Result<()> {
        let mut begun = match self.begun.take() {
            Some(begun) => begun,
            // Without packets, too, bad manifests are an error.
            None => self.begin(0)?,
        };
        self.progress = None;
        let seconds = begun.now - begun.first;
        let flows = begun.replay.flows();
        self.report
            .summary(seconds, flows, self.events.len(), &mut self.out)?;
        self.out.flush()?;
        match self.copy.take() {
            Some(copy) => copy.into_inner().finish(),
            None => Ok(()),
        }
    }
}
