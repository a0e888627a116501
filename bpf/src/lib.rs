//! ringwall-bpf.
