//! One Pangea node: everything between a program's request and the kernels in `pangea-compute`.
//! Never knows the kernels' insides.

pub mod schedule;
