//! The registry of jobs at one node: what is told to it, what follows, and how a node that is to end drains.

use pangea_control::jobs::{Action, Ending, Event, JobId};

use crate::checks::Broken;
use crate::scenario::{Micros, SECOND};
use crate::world::{Happening, World};

impl World {
    /// Tells the registry what happened to a job, and does what follows.
    pub(crate) fn tell_jobs(&mut self, node: usize, event: Event) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let time = run.time(now);
        for action in run.jobs.handle(event, time) {
            match action {
                Action::Publish(event) => self.checks.job_event(now, node, &event)?,
                Action::Cancel(job) => self.end_work(node, job)?,
                Action::Drained => {
                    let live = self.nodes[node].run.as_ref().map_or(0, |run| run.jobs.live());
                    self.checks.drained(now, node, live)?;
                    self.after(0, Happening::Exit { node, run: self.nodes[node].runs });
                }
            }
        }
        Ok(())
    }

    /// A job ended.
    pub(crate) fn end_job(&mut self, node: usize, job: JobId, ending: Ending) -> Result<(), Broken> {
        self.tell_jobs(node, Event::Ended(job, ending))
    }

    /// Whoever works on a job is to end that.
    fn end_work(&mut self, node: usize, job: JobId) -> Result<(), Broken> {
        let Some(run) = &self.nodes[node].run else { return Ok(()) };
        if run.chats.chats.contains_key(&job) { self.cancel_chat(node, job) } else { self.cancel_job(node, job) }
    }

    /// A node is asked to end.
    pub(crate) fn drain(&mut self, node: usize, grace: Micros) -> Result<(), Broken> {
        let Some(run) = self.nodes[node].run.as_mut().filter(|run| !run.draining) else { return Ok(()) };
        run.draining = true;
        let run = run.number;
        self.after(grace, Happening::CutOff { node, run });
        self.tell_jobs(node, Event::Drain)
    }

    /// The time that a node drains for is over.
    pub(crate) fn cut_off_jobs(&mut self, node: usize) -> Result<(), Broken> {
        self.checks.counts.add("jobs cut off");
        self.tell_jobs(node, Event::CutOff)?;
        let run = self.nodes[node].runs;
        // What is left then ends with the process.
        self.after(SECOND, Happening::Exit { node, run });
        Ok(())
    }
}
