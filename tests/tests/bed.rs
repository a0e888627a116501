//! The bed itself: with the kernel forwarding every member reaches every other, without it none does.
#![allow(clippy::unwrap_used)] // tests

use std::time::Duration;

use ringwall_testbed::{
    preflight::runs_here,
    probe::{Attempt, Outcome, Service, attempt_all},
    topology::{Bed, Plan, Role},
};

#[test]
fn every_member_reaches_every_other_by_the_kernel_and_none_without() {
    let Some(_alone) = runs_here("bed") else { return };
    for role in [Role::Routed, Role::Wire] {
        let plans = [
            Plan::new("a/one"),
            Plan::new("a/two").tcp(&[5000]),
            Plan::new("b/three").outside(),
        ];
        let bed = Bed::new(role, &plans, 2).unwrap();
        let mut attempts = Vec::new();
        for from in bed.pods.iter().chain([&bed.external]) {
            for to in bed
                .pods
                .iter()
                .chain([&bed.external])
                .filter(|to| bed.crosses(from, to))
            {
                for v6 in [false, true] {
                    for service in [Service::Tcp(80), Service::Udp(53), Service::Echo] {
                        attempts.push((
                            Attempt {
                                from: &from.ns,
                                source: None,
                                to: to.address(v6),
                                service,
                            },
                            &to.name,
                        ));
                    }
                }
            }
        }
        assert!(attempts.len() >= 36, "{}", attempts.len());
        let tried: Vec<_> = attempts.iter().map(|(attempt, _)| *attempt).collect();
        for (outcome, (attempt, _)) in attempt_all(&tried, Duration::from_millis(400))
            .unwrap()
            .iter()
            .zip(&attempts)
        {
            assert!(
                !outcome.answered(),
                "{role:?} {attempt:?} got through a gateway that forwards nothing"
            );
        }
        bed.forward_by_kernel().unwrap();
        let mut wrong = Vec::new();
        for (outcome, (attempt, to)) in attempt_all(&tried, Duration::from_secs(3))
            .unwrap()
            .iter()
            .zip(&attempts)
        {
            let right = match outcome {
                Outcome::Answered(Some(name)) => name == *to,
                Outcome::Answered(None) => attempt.service == Service::Echo,
                _ => false,
            };
            if !right {
                wrong.push(format!("{attempt:?}: {outcome:?}"));
            }
        }
        assert!(
            wrong.is_empty(),
            "{role:?}: {} of {}\n{}",
            wrong.len(),
            tried.len(),
            wrong.join("\n")
        );
    }
}
