//! Where policy and identity come from: a folder of manifests, or an API server.
#![forbid(unsafe_code)]

pub mod decode;
pub mod document;
pub mod feed;
pub mod folder;
pub mod kube;
pub mod problems;
pub mod staged;
pub mod watched;
mod yaml;

use ringwall_config::SourceKind;
use ringwall_process::confine::SourceFiles;
pub use yaml::is_text as yaml_text;

/// What a process has to read that takes policies from `source`.
pub fn needs(source: &SourceKind) -> SourceFiles {
    let access = match source {
        SourceKind::Manifests { dir } => return SourceFiles::of_folder(dir),
        SourceKind::Kubeconfig { file, context } => kube::Access::Kubeconfig {
            file: file.clone(),
            context: context.clone(),
        },
        SourceKind::InCluster => kube::Access::InCluster,
    };
    kube::needs(&access)
}
