//! A lease of memory, which lasts as long as its value lives.

use pangea_control::devices::{Event, LeaseId};

use super::Devices;

/// A part of a node's memory, given back when dropped.
#[derive(Debug)]
pub struct Lease {
    devices: Devices,
    lease: LeaseId,
    bytes: u64,
}

impl Lease {
    pub(super) fn new(devices: Devices, lease: LeaseId, bytes: u64) -> Lease {
        Lease { devices, lease, bytes }
    }

    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keeps `bytes` and gives the rest back; does nothing if the lease is not larger.
    pub fn shrink(&mut self, bytes: u64) {
        if bytes < self.bytes {
            self.bytes = bytes;
            self.devices.tell(Event::Shrink { lease: self.lease, bytes });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.devices.tell(Event::GiveBack(self.lease));
    }
}
