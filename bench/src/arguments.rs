//! Numbers on the command line without which a measurement would measure nothing: refused when they are read, not found out later.

use std::{fmt::Display, str::FromStr};

/// The longest that anything may last.
const DAY: f64 = 86_400.0;

/// A whole number from 1 on, as rounds, flows and changes are.
///
/// # Errors
/// It is none, or zero.
pub(crate) fn positive<T: FromStr<Err: Display> + Default + PartialOrd>(text: &str) -> Result<T, String> {
    let number: T = text.parse().map_err(|error| format!("{error}"))?;
    if number > T::default() {
        Ok(number)
    } else {
        Err("must be 1 or more, else nothing is measured".to_owned())
    }
}

/// Seconds: more than none, at most a day.
///
/// # Errors
/// It is no number, or out of range.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && number <= DAY => Ok(number),
        Ok(_) => Err(format!("must be more than 0 and at most {DAY} seconds")),
        Err(error) => Err(format!("{error}")),
    }
}

/// A share: more than 0 and less than 1.
///
/// # Errors
/// It is no number, or out of range.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && number < 1.0 => Ok(number),
        Ok(_) => Err("must be more than 0 and less than 1".to_owned()),
        Err(error) => Err(format!("{error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::{positive, seconds, share};

    #[test]
    fn numbers_that_would_measure_nothing_are_refused() {
        assert_eq!(positive::<usize>("3"), Ok(3));
        for nothing in ["0", "-1", "x", ""] {
            assert!(positive::<u32>(nothing).is_err(), "{nothing}");
        }
        assert_eq!(seconds("0.25"), Ok(0.25));
        for nothing in ["0", "-1", "nan", "inf", "1e9", "soon"] {
            assert!(seconds(nothing).is_err(), "{nothing}");
        }
        assert_eq!(share("0.05"), Ok(0.05));
        for nothing in ["0", "1", "-0.1", "nan"] {
            assert!(share(nothing).is_err(), "{nothing}");
        }
    }
}
