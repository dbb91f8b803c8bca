//! A cancelled pass ends soon and changes nothing.

use super::*;

/// A cancellation that comes at look number `at`, and the number of looks so far. A pass looks before each piece of its work.
pub(super) fn cancelled_at(at: usize) -> (Cancel, Arc<AtomicUsize>) {
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&looks);
    (Cancel::when(move || counted.fetch_add(1, Ordering::Relaxed) >= at), looks)
}

#[test]
fn a_cancelled_pass_computes_no_further_piece_and_changes_nothing() {
    for (threads, rows) in [(1, 1), (2, 1), (3, 9), (2, 300)] {
        let file = tiny("qwen3", GgmlType::Q4_0);
        let stages = Stages::load(&file, &[], |_| engine(threads, Isa::best()));
        let model = &stages.stages[0];
        let (past, tokens) = (text(1, 40), text(2, rows));
        let mut session = stages.session();
        stages.advance(&mut [(&mut session, &past)]);
        let used = stages.budget.used_bytes();
        let mut until = |cancel: &Cancel| {
            let mut steps = [Step { cache: &mut session.caches[0], rows, logits: Logits::All }];
            model.forward(&mut steps, Input::Tokens(&tokens), cancel).map(|_| ())
        };
        let (never, looks) = cancelled_at(usize::MAX);
        until(&never).unwrap();
        let pieces = looks.load(Ordering::Relaxed);
        // Queries, keys, values, attention, output, gate, up and down of every layer, and the head.
        assert!(pieces > LAYERS * 8, "{pieces} pieces");
        session.truncate(past.len());
        for at in (0..pieces).step_by((pieces / 40).max(1)) {
            let (cancel, looks) = cancelled_at(at);
            let mut steps = [Step { cache: &mut session.caches[0], rows, logits: Logits::All }];
            let result = model.forward(&mut steps, Input::Tokens(&tokens), &cancel);
            let error = result.expect_err("a cancelled pass");
            assert!(matches!(error, Error::Cancelled) && error.kind() == ErrorKind::Cancelled, "{error}");
            // Each thread may look at the same time as the first one that sees it, and then computes nothing more.
            let after = looks.load(Ordering::Relaxed) - at;
            assert!(
                after <= threads,
                "{after} looks after the cancellation at piece {at} of {pieces}, {threads} threads"
            );
            assert_eq!((session.caches[0].len(), stages.budget.used_bytes()), (past.len(), used));
        }
        stages.advance(&mut [(&mut session, &tokens)]);
        assert_eq!(session.digest(), reference(&file, &[past, tokens].concat()), "{threads} threads, {rows} rows");
    }
}

/// The time from a cancellation to the return of a pass of 256 rows through layers as large as those of an 8B model.
#[test]
#[ignore = "a measurement, of half a minute"]
fn a_pass_through_layers_of_8b_ends_within_50_ms_of_its_cancellation() {
    let sizes = Sizes {
        layers: 2,
        hidden: 4_096,
        heads: 32,
        kv_heads: 8,
        head: 128,
        intermediate: 14_336,
        vocabulary: VOCABULARY,
        context: 8_192,
    };
    let of = Tiny { architecture: "qwen2", weights: GgmlType::Q4_0, seed: 7 };
    let file = ModelFile::from_bytes(tiny::gguf_of(of, sizes, |_, _| {})).unwrap();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let stages = Stages::load(&file, &[], |_| engine(threads, Isa::best()));
    let model = &stages.stages[0];
    let tokens = text(1, 256);
    let run = |cancel: &Cancel| {
        let mut cache = model.cache(&stages.budget);
        let mut steps = [Step { cache: &mut cache, rows: tokens.len(), logits: Logits::Last }];
        model.forward(&mut steps, Input::Tokens(&tokens), cancel).map(|_| ())
    };
    let began = Instant::now();
    run(&Cancel::new()).unwrap();
    let whole = began.elapsed();
    let mut delays: Vec<Duration> = (1..20)
        .map(|part| {
            let cancel = Cancel::new();
            std::thread::scope(|scope| {
                let pass = scope.spawn(|| {
                    assert!(run(&cancel).is_err());
                    Instant::now()
                });
                std::thread::sleep(whole * part / 25);
                let at = Instant::now();
                cancel.cancel();
                pass.join().unwrap().duration_since(at)
            })
        })
        .collect();
    delays.sort_unstable();
    eprintln!(
        "{threads} threads: the pass {whole:?}; after the cancellation {:?} (median), {:?}",
        delays[9], delays[18]
    );
    assert!(delays[18] < Duration::from_millis(50), "{delays:?}");
}
