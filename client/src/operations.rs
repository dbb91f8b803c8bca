//! The operations on tensors that a node computes, for both clients. Each returns at once with the running [`Job`] and its
//! result, a [`Tensor`] that may still be computed and is an operand like any other; nothing is computed here.

use capnp::capability::{FromClientHook, RemotePromise};
use pangea_schema::job_capnp::job;
use pangea_schema::tensor_capnp::tensor;

use crate::job::{Job, MatmulOptions};
use crate::tensor::Tensor;
use crate::{Client, blocking};

impl Client {
    /// Starts `C[m, n] = A[m, k] · B[k, n]` and returns at once; both operands may be results
    /// that are still being computed. The job is cancelled when both the [`Job`] and the product are
    /// dropped. Errors of the operands are returned by both.
    pub fn matmul(&self, a: &Tensor, b: &Tensor, options: &MatmulOptions) -> (Job, Tensor) {
        let mut request = self.node.matmul_request();
        request.get().set_a(a.capability());
        request.get().set_b(b.capability());
        options.to_wire(request.get().init_options());
        let RemotePromise { promise, pipeline } = request.send();
        self.running(pipeline.get_job(), pipeline.get_product(), (promise, pipeline))
    }

    /// Starts `C = A + B`, element by element, of two tensors of one shape and dtype (f32, f64 or i32). A sum that leaves i32
    /// fails the job with `InvalidInput`. Otherwise as [`Client::matmul`].
    pub fn add(&self, a: &Tensor, b: &Tensor, options: &MatmulOptions) -> (Job, Tensor) {
        let mut request = self.node.add_request();
        request.get().set_a(a.capability());
        request.get().set_b(b.capability());
        options.to_wire(request.get().init_options());
        let RemotePromise { promise, pipeline } = request.send();
        self.running(pipeline.get_job(), pipeline.get_sum(), (promise, pipeline))
    }

    /// A job and its result, which are parts of an answer that has not come.
    fn running<P: Future + 'static, L: 'static>(
        &self,
        job: job::Client,
        result: tensor::Client,
        (answer, pipeline): (P, L),
    ) -> (Job, Tensor) {
        // Until their promises resolve, job and result are parts of one answer, and the node keeps both for as long as
        // either is referenced. They resolve only if something waits for the resolution, and has started to wait before.
        let resolutions = [job.as_client_hook().when_more_resolved(), result.as_client_hook().when_more_resolved()];
        self.connection.spawn(async move {
            let _answer = answer.await;
            for resolution in resolutions.into_iter().flatten() {
                // A failure is returned by every call on them.
                let _ = resolution.await;
            }
            drop(pipeline);
        });
        (Job::new(job, self.connection.clone()), Tensor::new(result, self.connection.clone()))
    }
}

impl blocking::Client {
    /// See [`Client::matmul`]. The request leaves with the next call that waits.
    pub fn matmul(&self, a: &Tensor, b: &Tensor, options: &MatmulOptions) -> (Job, Tensor) {
        // Sending does not wait, but spawns tasks, which needs the task set.
        self.block_on(async { self.inner().matmul(a, b, options) })
    }

    /// See [`Client::add`]. The request leaves with the next call that waits.
    pub fn add(&self, a: &Tensor, b: &Tensor, options: &MatmulOptions) -> (Job, Tensor) {
        self.block_on(async { self.inner().add(a, b, options) })
    }
}
