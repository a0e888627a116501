//! Where policy and identity come from: a folder of manifests, or an API server.

pub mod decode;
pub(crate) mod document;
pub mod feed;
pub mod folder;
pub mod kube;
pub mod problems;
pub mod watched;
mod yaml;

pub(crate) use yaml::is_text as yaml_text;
