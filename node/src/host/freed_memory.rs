//! Memory that was freed goes back to the system, also on a node that has nothing to do.

use std::time::Duration;

/// Interval at which freed memory is given back: what a load or an answer used is gone from the process's size soon after it.
const INTERVAL: Duration = Duration::from_secs(5);

/// Size of a block that no allocator keeps for the next request of its size.
const LARGE_BYTES: usize = 8 << 20;

/// Has the allocator give freed memory back, again and again. mimalloc keeps it for a second, and looks at what it keeps only when
/// a large block is freed: an idle node would hold for good what it used last.
pub async fn give_back_freed_memory() {
    loop {
        tokio::time::sleep(INTERVAL).await;
        // Nothing is written to the block, so it has no pages of its own.
        drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGE_BYTES)));
    }
}
