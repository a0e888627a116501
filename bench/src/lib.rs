//! ringwall-bench.
