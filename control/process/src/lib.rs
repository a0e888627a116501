//! What every long-running process of the appliance does alike: its [`log`], the rights that it gives up ([`confine`]),
//! the CPUs that it leaves to the workers ([`cpus`]), and the threads and tasks that it cannot do without ([`essential`]).
#![forbid(unsafe_code)]

pub mod confine;
pub mod cpus;
pub mod essential;
pub mod log;

/// An error and its causes. Many errors tell their cause in their own words and name it as their source, too: each is
/// said once.
pub fn whole_message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}
