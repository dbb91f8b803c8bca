//! The cores that all compute pools of a node share: threads that wait for their turn, and one read of an atomic, which
//! is all that a turn costs while nothing more urgent computes. [`pangea_control::devices::turns`] decides who continues.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use pangea_compute::SharedCores;
use pangea_control::devices::turns::{Action, Class, Event, SLICE, TurnId, Turns};

use crate::clock;

/// The value of [`Inner::most_urgent`] while nothing computes: greater than every class.
const NOTHING: u8 = u8::MAX;

/// The cores of a node. Clones share them.
#[derive(Clone)]
pub(super) struct Cores(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// The most urgent class that computes. Threads read it to see whether they have to ask for a turn.
    most_urgent: AtomicU8,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    turns: Turns,
    next: TurnId,
    /// Requests that were granted and whose threads have not continued yet.
    allowed: BTreeSet<TurnId>,
}

impl Cores {
    pub(super) fn new() -> Cores {
        let inner = Inner { state: Mutex::default(), most_urgent: AtomicU8::new(NOTHING), wake: Condvar::new() };
        Cores(Arc::new(inner))
    }

    /// The cores for a pool whose work is of `class`.
    pub(super) fn of(&self, class: Class) -> Arc<dyn SharedCores> {
        Arc::new(ClassOnCores { cores: self.clone(), class })
    }

    /// A turn for work that is not cut into pieces. Blocks until the work may begin.
    pub(super) fn turn(&self, class: Class) -> Turn {
        self.begin(class);
        Turn { cores: self.clone(), class }
    }

    fn begin(&self, class: Class) {
        self.tell(&mut self.state(), Event::Begin(class));
        self.go_on(class);
    }

    fn end(&self, class: Class) {
        self.tell(&mut self.state(), Event::End(class));
    }

    /// Returns at once if nothing more urgent computes, otherwise as soon as `class` may continue.
    fn go_on(&self, class: Class) {
        // A more urgent class that begins just now is noticed before the next piece.
        if self.0.most_urgent.load(Ordering::Relaxed) >= class as u8 {
            return;
        }
        let mut state = self.state();
        state.next += 1;
        let turn = state.next;
        self.tell(&mut state, Event::Ask { turn, class });
        while !state.allowed.remove(&turn) {
            // Every class has a longest wait, so while a thread waits there is a time to wake up at.
            let due = state.turns.wake_at().map_or(SLICE, |due| due.since(clock::now()));
            state = self.0.wake.wait_timeout(state, due).unwrap_or_else(PoisonError::into_inner).0;
            self.tell(&mut state, Event::Tick);
        }
    }

    fn tell(&self, state: &mut State, event: Event) {
        let actions = state.turns.handle(event, clock::now());
        let most_urgent = state.turns.most_urgent().map_or(NOTHING, |class| class as u8);
        self.0.most_urgent.store(most_urgent, Ordering::Relaxed);
        if !actions.is_empty() {
            state.allowed.extend(actions.into_iter().map(|Action::Go(turn)| turn));
            self.0.wake.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn on the cores, which ends when this is dropped.
pub struct Turn {
    cores: Cores,
    class: Class,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.cores.end(self.class);
    }
}

/// The cores as a pool of one class uses them.
struct ClassOnCores {
    cores: Cores,
    class: Class,
}

impl SharedCores for ClassOnCores {
    fn begin(&self) {
        self.cores.begin(self.class);
    }

    fn next_piece(&self) {
        self.cores.go_on(self.class);
    }

    fn end(&self) {
        self.cores.end(self.class);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{TryRecvError, sync_channel};

    #[test]
    fn a_product_continues_after_the_step_of_an_answer() {
        let cores = Cores::new();
        let product = cores.of(Class::Products);
        product.begin();
        product.next_piece();
        let answer = cores.turn(Class::Answers);
        // Two threads of one product.
        let (began, pieces) = sync_channel(2);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (product, began) = (&product, began.clone());
                scope.spawn(move || {
                    product.next_piece();
                    began.send(()).unwrap();
                });
            }
            // Answers of other models do not wait for this one.
            drop(cores.turn(Class::Answers));
            drop(answer);
            assert_eq!([pieces.recv(), pieces.recv()], [Ok(()), Ok(())]);
        });
        product.end();
        assert_eq!(pieces.try_recv(), Err(TryRecvError::Empty));
        let state = cores.state();
        assert_eq!((state.turns.most_urgent(), state.allowed.len()), (None, 0));
    }

    #[test]
    fn a_product_does_not_wait_forever_for_an_answer_that_does_not_end() {
        let cores = Cores::new();
        let _answer = cores.turn(Class::Answers);
        for class in [Class::Products, Class::Background] {
            let pool = pangea_compute::Pool::new(2).unwrap().on(cores.of(class));
            let [a, b] = [1, 2]
                .map(|seed| pangea_compute::Tensor::generate(pangea_compute::DType::F32, 256, 256, seed).unwrap());
            pangea_compute::matmul(&a, &b, &pool, &pangea_compute::Cancel::new()).unwrap();
        }
    }
}
