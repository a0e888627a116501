//! Where policy and identity come from: a folder of manifests, or an API server.

pub mod decode;
pub mod feed;
mod document;
pub mod folder;
pub mod kube;
