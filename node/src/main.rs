//! pangea
fn main() {}
