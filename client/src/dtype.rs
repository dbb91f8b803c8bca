//! The element types of tensors, as programs name them. Never touches elements.

use std::fmt;

use pangea_schema::tensor_capnp;
use serde::{Serialize, Serializer};

use crate::{Error, ErrorKind, Result};

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `f32`.
    Bf16,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// Signed 8-bit integer.
    I8,
    /// Signed 32-bit integer.
    I32,
}

impl DType {
    /// Every dtype.
    pub const ALL: [DType; 6] = [DType::F16, DType::Bf16, DType::F32, DType::F64, DType::I8, DType::I32];

    /// The name that every surface uses.
    pub fn name(self) -> &'static str {
        match self {
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::I8 => "i8",
            DType::I32 => "i32",
        }
    }

    /// The dtype of that name; `InvalidInput` where there is none.
    pub fn from_name(name: &str) -> Result<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| {
            let known = DType::ALL.map(DType::name).join(", ");
            Error::new(ErrorKind::InvalidInput, format!("dtype {name} is not supported; use one of {known}"))
        })
    }

    /// Bytes of one element.
    pub fn size_bytes(self) -> u64 {
        match self {
            DType::I8 => 1,
            DType::F16 | DType::Bf16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 => 8,
        }
    }

    /// The wire form.
    pub fn to_wire(self) -> tensor_capnp::DType {
        match self {
            DType::F16 => tensor_capnp::DType::F16,
            DType::Bf16 => tensor_capnp::DType::Bf16,
            DType::F32 => tensor_capnp::DType::F32,
            DType::F64 => tensor_capnp::DType::F64,
            DType::I8 => tensor_capnp::DType::I8,
            DType::I32 => tensor_capnp::DType::I32,
        }
    }

    /// The dtype of a wire form.
    pub fn from_wire(wire: tensor_capnp::DType) -> DType {
        match wire {
            tensor_capnp::DType::F16 => DType::F16,
            tensor_capnp::DType::Bf16 => DType::Bf16,
            tensor_capnp::DType::F32 => DType::F32,
            tensor_capnp::DType::F64 => DType::F64,
            tensor_capnp::DType::I8 => DType::I8,
            tensor_capnp::DType::I32 => DType::I32,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for DType {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
