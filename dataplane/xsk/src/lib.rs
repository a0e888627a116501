//! ringwall-xsk.
