//! CPU lists in the kernel's notation.

/// A CPU, by the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CpuId(pub u16);

/// A CPU list that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{part}` is not part of a CPU list; write single CPUs and ranges such as `2-5,8` or `0-30:2`")]
pub struct CpuListError {
    part: String,
}

/// The highest CPU number that the kernel supports anywhere (CONFIG_NR_CPUS).
const MAX_CPU: u16 = 8191;

/// Reads a CPU list in the kernel's notation (`2-5,8`, `0-30:2`): ascending, without doubles, not empty.
///
/// # Errors
/// Names the part that is no CPU, no range, a range backwards or a CPU past the kernel's limit.
pub fn parse_cpu_list(text: &str) -> Result<Vec<CpuId>, CpuListError> {
    let mut cpus = std::collections::BTreeSet::new();
    for part in text.trim().split(',') {
        let error = || CpuListError {
            part: part.trim().to_owned(),
        };
        let number = |text: &str| {
            let text = text.trim();
            // `parse` would also take a sign.
            if !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(error());
            }
            text.parse::<u16>()
                .ok()
                .filter(|cpu| *cpu <= MAX_CPU)
                .ok_or_else(error)
        };
        let (range, step) = match part.split_once(':') {
            Some((range, step)) if range.contains('-') => (range, number(step)?),
            Some(_) => return Err(error()),
            None => (part, 1),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(range)?, number(range)?),
        };
        if last < first || step == 0 {
            return Err(error());
        }
        cpus.extend((first..=last).step_by(usize::from(step)).map(CpuId));
    }
    Ok(cpus.into_iter().collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // tests
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_without_doubles() {
        let numbers = |text| {
            parse_cpu_list(text)
                .unwrap()
                .into_iter()
                .map(|cpu| cpu.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers("2-5"), [2, 3, 4, 5]);
        assert_eq!(numbers("8, 2-3,3"), [2, 3, 8]);
        assert_eq!(numbers("0-8:4\n"), [0, 4, 8]);
        assert_eq!(numbers("0"), [0]);
    }

    #[test]
    fn wrong_lists_name_the_part() {
        for (list, part) in [
            ("", ""),
            ("1,,2", ""),
            ("5-2", "5-2"),
            ("1,two", "two"),
            ("+1", "+1"),
            ("-1", "-1"),
            ("0-4:0", "0-4:0"),
            ("3:2", "3:2"),
            ("8192", "8192"),
            ("99999999", "99999999"),
        ] {
            assert_eq!(parse_cpu_list(list).unwrap_err().part, part, "{list}");
        }
    }
}
