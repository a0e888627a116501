//! ringwall-testbed.
