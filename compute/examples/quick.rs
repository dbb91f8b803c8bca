use pangea_compute::*;
use std::time::Instant;
fn best(mut f: impl FnMut(), reps: usize) -> f64 {
    f();
    (0..reps).map(|_| { let t = Instant::now(); f(); t.elapsed().as_secs_f64() }).fold(f64::MAX, f64::min)
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let what = args.get(1).map(String::as_str).unwrap_or("all");
    let cancel = Cancel::new();
    let g = |d, m, k, n| (Tensor::generate(d, m, k, 1).unwrap(), Tensor::generate(d, k, n, 2).unwrap());
    if what == "all" || what == "prod" {
        for d in [DType::F32, DType::F64, DType::Bf16, DType::F16, DType::I8] {
            if let Some(w) = args.get(2) { if w != d.name() { continue; } }
            for th in [1, 2] {
                let pool = Pool::new(th).unwrap();
                print!("{d} {th}thr:");
                for n in [64usize, 128, 256, 512, 1024, 2048, 4096] {
                    if d == DType::F64 && n == 4096 { continue; }
                    let (a, b) = g(d, n, n, n);
                    let reps = (4e9 / (n as f64).powi(3)).clamp(1.0, 200.0) as usize + 1;
                    let t = best(|| { matmul(&a, &b, &pool, &cancel).unwrap(); }, reps);
                    print!(" {n}:{:.1}", 2.0 * (n as f64).powi(3) / t / 1e9);
                }
                println!();
            }
        }
    }
    if what == "all" || what == "check" {
        for d in [DType::F32, DType::F64, DType::I8] {
            let pool = Pool::new(1).unwrap();
            for s in [512usize, 1024, 4096] {
                let k = 4096;
                let (a, b) = g(d, s, k, s);
                let pa = PackedA::new(&a, d, &pool, &cancel).unwrap();
                let pb = PackedB::new(&b, d, &pool, &cancel).unwrap();
                let c = matmul(&a, &b, &pool, &cancel).unwrap();
                let tp = best(|| { matmul(&a, &b, &pool, &cancel).unwrap(); }, 3);
                let tk = best(|| { matmul_packed(&pa, &pb, &pool, &cancel).unwrap(); }, 3);
                let tb = best(|| { PackedB::new(&b, d, &pool, &cancel).unwrap(); }, 3);
                let tn = best(|| { ColumnProbe::new(&b, c.dtype(), [3; 32], &pool).unwrap(); }, 3);
                let probe = ColumnProbe::new(&b, c.dtype(), [3; 32], &pool).unwrap();
                let tc = best(|| { probe.check(&a, &b, &c, &pool).unwrap(); }, 3);
                println!("{d} tile {s}: product {:.2} ms packed {:.2} packB {:.2} probe {:.2} check {:.2} ({:.2} %)", tp*1e3, tk*1e3, tb*1e3, tn*1e3, tc*1e3, 100.0*tc/tk);
            }
        }
    }
}
