// Slots by their experts, for products that read an expert's weights once for many slots: one workgroup. The order of the slots of
// an expert is any; no result depends on it.

struct Params {
  slots: u32,
  experts: u32,
  // Tiles that there is room for.
  tiles: u32,
  pad0: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> chosen: array<vec2<u32>>;
// Of each tile: expert, first slot in the order, number of slots, 0; zeros for tiles that are not needed. Then the order: slots.
@group(0) @binding(1) var<storage, read_write> groups: array<u32>;

const THREADS = 256u;
const MAX_EXPERTS = 1088u;
// Slots of a tile, as in tiled_product.wgsl.
const TILE = 64u;

var<workgroup> counts: array<atomic<u32>, MAX_EXPERTS>;
var<workgroup> next: array<atomic<u32>, MAX_EXPERTS>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) t: u32) {
  for (var i = t; i < MAX_EXPERTS; i += THREADS) {
    atomicStore(&counts[i], 0u);
  }
  workgroupBarrier();
  for (var i = t; i < p.slots; i += THREADS) {
    atomicAdd(&counts[min(chosen[i].x, MAX_EXPERTS - 1u)], 1u);
  }
  workgroupBarrier();
  if (t == 0u) {
    var start = 0u;
    var tile = 0u;
    for (var expert = 0u; expert < p.experts; expert++) {
      let count = atomicLoad(&counts[expert]);
      atomicStore(&next[expert], start);
      for (var done = 0u; done < count && tile < p.tiles; done += TILE) {
        groups[4u * tile] = expert;
        groups[4u * tile + 1u] = start + done;
        groups[4u * tile + 2u] = min(TILE, count - done);
        groups[4u * tile + 3u] = 0u;
        tile++;
      }
      start += count;
    }
    for (; tile < p.tiles; tile++) {
      groups[4u * tile + 2u] = 0u;
    }
  }
  workgroupBarrier();
  for (var i = t; i < p.slots; i += THREADS) {
    let at = atomicAdd(&next[min(chosen[i].x, MAX_EXPERTS - 1u)], 1u);
    groups[4u * p.tiles + at] = i;
  }
}
