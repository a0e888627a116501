//! The policies of Calico: `projectcalico.org/v3`, and `crd.projectcalico.org/v1` as they are stored.

#[cfg_attr(not(test), expect(dead_code, reason = "the decoders that use it come next"))]
mod selector;
