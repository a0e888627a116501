//! Captures, and the dataplane's own worker over them.
//!
//! * [`capture`] pcap and pcapng files: read packet by packet, and copied packet by packet.
//! * [`replay`] what a worker decides about each packet, with the capture's clock.
#![forbid(unsafe_code)]

pub mod capture;
pub mod replay;
