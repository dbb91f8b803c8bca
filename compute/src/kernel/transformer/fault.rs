//! The first fault of a pass: which step of which layer computed a value that nothing can be computed from. Threads report
//! every such value where it arises, because what comes after may make a number of it; the earliest step is kept, so the
//! error is the same for every thread count and instruction set.

use crate::Error;
use std::sync::atomic::{AtomicU64, Ordering};

/// The steps of a pass whose results are checked, in the order in which they are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Embeddings,
    ReceivedActivations,
    AttentionNorm,
    Queries,
    Keys,
    Values,
    DeltaInputs,
    Attention,
    AttentionOutput,
    FfnNorm,
    Router,
    Gated,
    FfnOutput,
    OutputNorm,
    Logits,
}

impl Step {
    const ALL: [Step; 15] = [
        Step::Embeddings,
        Step::ReceivedActivations,
        Step::AttentionNorm,
        Step::Queries,
        Step::Keys,
        Step::Values,
        Step::DeltaInputs,
        Step::Attention,
        Step::AttentionOutput,
        Step::FfnNorm,
        Step::Router,
        Step::Gated,
        Step::FfnOutput,
        Step::OutputNorm,
        Step::Logits,
    ];

    /// The step of that number.
    pub(crate) fn of(number: usize) -> Option<Step> {
        Step::ALL.get(number).copied()
    }

    /// The error of a pass in which this step failed first. `layer` is counted from the model's first; what comes after the layers
    /// counts as one more.
    pub(crate) fn error(self, layer: usize, fault: Fault) -> Error {
        let name = self.name(layer);
        let what = match (fault, self) {
            (Fault::NotFinite, _) => {
                return Error::NonFinite { operation: "forward", what: format!("{name} are not finite") };
            }
            (Fault::TooLarge, Step::Queries) => {
                format!("{name} exceed 2^100: attention scores would overflow; the model is damaged")
            }
            (Fault::TooLarge, _) => {
                format!("{name} exceed half precision: this model cannot run with a half-precision cache")
            }
        };
        Error::invalid("forward", what)
    }

    /// The step's results, for an error message. `layer` is counted from the model's first.
    fn name(self, layer: usize) -> String {
        let of_layer = |what: &str| format!("the {what} of layer {layer}");
        match self {
            Step::Embeddings => "the token embeddings".to_owned(),
            Step::ReceivedActivations => format!("the activations received for layer {layer}"),
            Step::AttentionNorm => of_layer("attention norms"),
            Step::Queries => of_layer("queries"),
            Step::Keys => of_layer("keys"),
            Step::Values => of_layer("values"),
            Step::DeltaInputs => of_layer("delta net's inputs"),
            Step::Attention => of_layer("attention results"),
            Step::AttentionOutput => of_layer("attention outputs"),
            Step::FfnNorm => of_layer("feed-forward norms"),
            Step::Router => of_layer("router values"),
            Step::Gated => of_layer("gated activations"),
            Step::FfnOutput => of_layer("feed-forward outputs"),
            Step::OutputNorm => "the output norms".to_owned(),
            Step::Logits => "the logits".to_owned(),
        }
    }
}

/// What is wrong with a value. Of two faults in one step, the first of these is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fault {
    /// NaN or infinite.
    NotFinite,
    /// Finite, but beyond the range that the next step takes.
    TooLarge,
}

/// The earliest fault that any thread reported. Encoded as layer, step and fault, so that the smallest number is the
/// earliest.
pub(super) struct FirstFault(AtomicU64);

const NO_FAULT: u64 = u64::MAX;

impl FirstFault {
    pub(super) fn none() -> FirstFault {
        FirstFault(AtomicU64::new(NO_FAULT))
    }

    /// Reports a fault. `layer` is counted from the batch's first; what comes after the layers counts as one more.
    #[cold]
    pub(super) fn report(&self, layer: usize, step: Step, fault: Fault) {
        let code = (layer as u64) << 16 | (step as u64) << 8 | fault as u64;
        self.0.fetch_min(code, Ordering::Relaxed);
    }

    /// The error of a pass whose first layer is the model's layer `first_layer`.
    pub(super) fn into_result(self, first_layer: usize) -> Result<(), Error> {
        let code = self.0.into_inner();
        let Some(step) = Step::of((code >> 8 & 0xff) as usize).filter(|_| code != NO_FAULT) else {
            return Ok(());
        };
        let fault = if code & 0xff == Fault::NotFinite as u64 { Fault::NotFinite } else { Fault::TooLarge };
        Err(step.error(first_layer + (code >> 16) as usize, fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_fault_is_the_error_in_whatever_order_they_are_reported() {
        let faults = [
            (1, Step::Keys, Fault::TooLarge),
            (1, Step::Keys, Fault::NotFinite),
            (1, Step::Values, Fault::NotFinite),
            (2, Step::AttentionNorm, Fault::NotFinite),
            (7, Step::Logits, Fault::NotFinite),
        ];
        for first in 0..faults.len() {
            let all = FirstFault::none();
            for at in 0..faults.len() {
                let (layer, step, fault) = faults[(first + at) % faults.len()];
                all.report(layer, step, fault);
            }
            let error = all.into_result(10).unwrap_err().to_string();
            assert!(error.contains("the keys of layer 11 are not finite"), "{error}");
        }
        assert!(FirstFault::none().into_result(0).is_ok());
    }

    #[test]
    fn every_step_and_fault_is_told_by_its_name() {
        for (code, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(code, step as usize);
            let fault = FirstFault::none();
            fault.report(0, step, Fault::NotFinite);
            let error = fault.into_result(0).unwrap_err();
            assert!(error.to_string().contains(&format!("{} are not finite", step.name(0))), "{error}");
        }
        let fault = FirstFault::none();
        fault.report(3, Step::Values, Fault::TooLarge);
        assert!(fault.into_result(0).unwrap_err().to_string().contains("values of layer 3 exceed half precision"));
    }
}
