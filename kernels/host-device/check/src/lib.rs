//! Tests only: the host device against the CPU (tests/).
