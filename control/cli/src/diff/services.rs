//! Recorded flows to Services, before and after.

use ringwall_analyse::{
    flow::{EndName, Service},
    judge::Judge,
    services::{Directory, Joint},
};

use super::{Side, recorded::Fate};

/// The Services of both states, and who judges their endpoints.
pub(super) struct BothSides<'a>([(Directory<'a>, Judge); 2]);

impl<'a> BothSides<'a> {
    /// None where neither state has a Service.
    ///
    /// # Errors
    /// The policies do not compile.
    pub(super) fn of(sides: &'a [Side; 2]) -> anyhow::Result<Option<Self>> {
        if sides.iter().all(|side| side.services.services.is_empty()) {
            return Ok(None);
        }
        let of = |side: &'a Side| -> anyhow::Result<_> {
            let directory = Directory::new(&side.cluster, &side.services);
            Ok((directory, Judge::new(&side.cluster)?))
        };
        let [from, to] = sides;
        Ok(Some(Self([of(from)?, of(to)?])))
    }

    /// What becomes of a flow to a Service; None where that is not its destination.
    pub(super) fn fate(
        &self,
        (src, dst): (&EndName, &EndName),
        service: Service,
        port_name: Option<&str>,
    ) -> Option<Result<Fate, String>> {
        let resolved = self
            .0
            .each_ref()
            .map(|(directory, judge)| directory.resolve(judge, (src, dst), service, port_name));
        let is_service = matches!(dst, EndName::Service(_));
        let [from, to] = match resolved {
            [Ok(None), Ok(None)] => return None,
            // The sender or the Service is on one side alone.
            [Err(error), Err(_)] => return is_service.then_some(Err(error)),
            [Err(why), _] if is_service => return Some(Ok(Fate::Unmatched(format!("before: {why}")))),
            [_, Err(why)] if is_service => return Some(Ok(Fate::Unmatched(format!("after: {why}")))),
            [Err(_), _] | [_, Err(_)] => return None,
            [Ok(Some(from)), Ok(Some(to))] => [from, to],
            [Ok(from), Ok(_)] => {
                let side = if from.is_some() { "before" } else { "after" };
                return Some(Ok(Fate::Unmatched(format!("{dst} is a Service's only {side}"))));
            }
        };
        let [a, b] = &self.0;
        let joint = |(directory, judge): &(Directory<'_>, Judge), resolved| -> Result<Joint, String> {
            directory.judge(judge, src, resolved).map(|(joint, _)| joint)
        };
        Some(match (joint(a, &from), joint(b, &to)) {
            (Ok(from), Ok(to)) if from == to => Ok(Fate::Stays),
            (Ok(from), Ok(to)) => Ok(Fate::ServiceChanges([from, to])),
            (Err(error), _) | (_, Err(error)) => Err(error),
        })
    }
}
