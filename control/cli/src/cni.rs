//! The command `ringwall cni`: puts the plugin behind a node's CNI, and takes it away again.
//!
//! A runtime uses the first file of its folder, in the order of names. So the chain with the plugin is a file of its own that comes first,
//! made of the first one that is there: the CNI's own file stays as it is, and may be written anew by the CNI at any time.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::whole_file::write_whole;

/// For the help.
pub(crate) const HELP: &str = "\
`install` copies the plugin `ringwall-cni` to the folder of plugins, and writes the first network configuration that is there with the
plugin at its end to a file that comes before it. From then on a pod starts once the dataplane guards its interface. `remove`
takes both away; do that before ringwall is removed, as pods cannot start while the plugin gets no answer.

Exit status: 0 done, 2 it could not be done.

Examples:
  ringwall cni install --config /etc/ringwall/node.yaml
  ringwall cni install --config /etc/ringwall/node.yaml --watch
  ringwall cni remove";

/// The plugin, beside this program and in the folder of plugins.
const PLUGIN: &str = "ringwall-cni";
/// The chain: digits come before letters.
const CHAIN: &str = "00-ringwall.conflist";
/// How often `--watch` looks.
const LOOK: Duration = Duration::from_secs(2);

/// Arguments of `ringwall cni`.
#[derive(Clone, Debug, clap::Args)]
pub struct CniArgs {
    /// What to do
    #[command(subcommand)]
    pub what: CniCommand,
}

/// What `ringwall cni` does.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum CniCommand {
    /// Put the plugin at the end of the node's chain
    Install(InstallArgs),
    /// Take the plugin out of the chain, and its program away
    Remove(Folders),
}

/// Where the runtime looks.
#[derive(Clone, Debug, clap::Args)]
pub struct Folders {
    /// Folder of network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// Folder of plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
}

/// Arguments of `ringwall cni install`.
#[derive(Clone, Debug, clap::Args)]
pub struct InstallArgs {
    /// Configuration file of the node's instance
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    folders: Folders,
    /// Program of the plugin; default: ringwall-cni beside this program
    #[arg(long, value_name = "PATH")]
    pub plugin: Option<PathBuf>,
    /// Keep running, and follow changes that the CNI makes to its configuration
    #[arg(long)]
    pub watch: bool,
}

/// Does it.
pub(crate) fn run(args: &CniArgs, json: bool) -> anyhow::Result<ExitCode> {
    match &args.what {
        CniCommand::Install(args) => install(args, json)?,
        CniCommand::Remove(folders) => remove(folders, json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn install(args: &InstallArgs, json: bool) -> anyhow::Result<()> {
    let config = ringwall_config::Config::load(&args.config)?;
    ensure!(
        config.role == ringwall_config::Role::KernelPath,
        "{}: only a node with `datapath: kernel` answers the plugin",
        args.config.display()
    );
    ensure!(
        config.pod_start != ringwall_config::PodStart::Off,
        "{}: write `podStart: attach` or `podStart: hold`, so that pods have the addresses that the plugin names and no others, and start `ringwall run` anew",
        args.config.display()
    );
    let plugin = match &args.plugin {
        Some(plugin) => plugin.clone(),
        None => std::env::current_exe()
            .context("cannot find this program; name the plugin with --plugin")?
            .with_file_name(PLUGIN),
    };
    copy_plugin(&plugin, &args.folders.bin_dir)?;
    let source = write_chain(&args.folders.conf_dir, &config.runtime_dir)?;
    say(
        json,
        &format!(
            "{}: the plugin follows the network configuration of {}",
            args.folders.conf_dir.join(CHAIN).display(),
            source.display()
        ),
        json!({ "chain": args.folders.conf_dir.join(CHAIN), "source": source }),
    )?;
    if args.watch {
        follow(&args.folders.conf_dir, &config.runtime_dir, source);
    }
    Ok(())
}

/// Keeps the chain what the first configuration makes it.
fn follow(folder: &Path, runtime_dir: &Path, mut source: PathBuf) -> ! {
    loop {
        thread::sleep(LOOK);
        // The CNI may be writing its file at this moment: what there is stays.
        match write_chain(folder, runtime_dir) {
            Ok(found) if found != source => {
                eprintln!(
                    "ringwall: the plugin follows {} now, instead of {}",
                    found.display(),
                    source.display()
                );
                source = found;
            }
            Ok(_) => {}
            Err(error) => eprintln!("ringwall: {error:#}; the chain stays as it is"),
        }
    }
}

fn remove(folders: &Folders, json: bool) -> anyhow::Result<()> {
    // The chain first: it names the program.
    for file in [folders.conf_dir.join(CHAIN), folders.bin_dir.join(PLUGIN)] {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", file.display()));
            }
            _ => {}
        }
    }
    say(
        json,
        "the plugin is out of the chain: pods start without ringwall",
        json!({ "removed": true }),
    )
}

fn say(json: bool, text: &str, object: Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "{text}")?;
    }
    Ok(())
}

/// Copies the program, in place of one that may be running.
fn copy_plugin(plugin: &Path, folder: &Path) -> anyhow::Result<()> {
    let program = fs::read(plugin).with_context(|| format!("cannot read the plugin {}", plugin.display()))?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let target = folder.join(PLUGIN);
    if fs::read(&target).is_ok_and(|there| there == program) {
        return Ok(());
    }
    let next = folder.join(format!(".{PLUGIN}.next"));
    fs::copy(plugin, &next)
        .and_then(|_| fs::rename(&next, &target))
        .with_context(|| format!("cannot write {}", target.display()))
}

/// Writes the chain unless it is as it should be; answers which configuration it is made of.
fn write_chain(folder: &Path, runtime_dir: &Path) -> anyhow::Result<PathBuf> {
    let (source, network) = first_network(folder)?;
    let chain = with_plugin(network, runtime_dir)
        .with_context(|| format!("{} is no network configuration", source.display()))?;
    let text = format!("{chain:#}\n");
    let file = folder.join(CHAIN);
    if fs::read_to_string(&file).is_ok_and(|there| there == text) {
        return Ok(source);
    }
    write_whole(&file, text.as_bytes())?;
    Ok(source)
}

/// The network configuration that a runtime would use without ringwall.
fn first_network(folder: &Path) -> anyhow::Result<(PathBuf, Value)> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let kind = path.extension().and_then(|extension| extension.to_str());
            matches!(kind, Some("conf" | "conflist" | "json"))
                && path.file_name().is_some_and(|name| name != CHAIN)
        })
        .collect();
    files.sort();
    let mut unreadable = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        match serde_json::from_str::<Value>(&text) {
            Ok(network) => return Ok((file, network)),
            Err(error) => unreadable.push(format!("{}: {error}", file.display())),
        }
    }
    if unreadable.is_empty() {
        bail!(
            "no network configuration in {}: install the CNI first",
            folder.display()
        );
    }
    bail!(
        "no network configuration that can be read: {}",
        unreadable.join("; ")
    )
}

/// A network with the plugin at its end.
fn with_plugin(mut network: Value, runtime_dir: &Path) -> anyhow::Result<Value> {
    let name = network["name"].as_str().context("it has no `name`")?.to_owned();
    let version = network["cniVersion"].as_str().unwrap_or("0.3.1").to_owned();
    if !network["plugins"].is_array() {
        // The older form: one plugin with the network's name and version in it.
        ensure!(
            network["type"].is_string(),
            "it has neither `plugins` nor a `type`"
        );
        if let Some(object) = network.as_object_mut() {
            object.remove("name");
            object.remove("cniVersion");
        }
        network = json!({ "plugins": [network] });
    }
    network["name"] = name.into();
    network["cniVersion"] = version.into();
    let plugins = network["plugins"].as_array_mut().context("it has no `plugins`")?;
    plugins.retain(|plugin| plugin["type"] != PLUGIN);
    ensure!(!plugins.is_empty(), "it has no plugins");
    plugins.push(json!({ "type": PLUGIN, "runtimeDir": runtime_dir }));
    Ok(network)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use super::*;

    fn written(folder: &Path) -> Value {
        serde_json::from_str(&fs::read_to_string(folder.join(CHAIN)).unwrap()).unwrap()
    }

    #[test]
    fn the_plugin_follows_the_first_configuration_and_what_becomes_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let run = Path::new("/run/ringwall/n1");
        assert!(
            write_chain(folder.path(), run)
                .unwrap_err()
                .to_string()
                .contains("install the CNI first")
        );

        fs::write(
            folder.path().join("10-flannel.conflist"),
            json!({"name": "cbr0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}).to_string(),
        )
        .unwrap();
        fs::write(folder.path().join("20-other.conf"), "{").unwrap();
        write_chain(folder.path(), run).unwrap();
        let chain = written(folder.path());
        assert_eq!(chain["name"], "cbr0");
        assert_eq!(chain["cniVersion"], "0.3.1");
        let types: Vec<&str> = chain["plugins"]
            .as_array()
            .unwrap()
            .iter()
            .map(|plugin| plugin["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, ["flannel", "portmap", PLUGIN]);
        assert_eq!(chain["plugins"][2]["runtimeDir"], "/run/ringwall/n1");

        // Another CNI, in the older form and before the first one.
        fs::write(
            folder.path().join("05-bridge.conf"),
            json!({"name": "net", "type": "bridge", "bridge": "cni0"}).to_string(),
        )
        .unwrap();
        let source = write_chain(folder.path(), run).unwrap();
        assert_eq!(source.file_name().unwrap(), "05-bridge.conf");
        let chain = written(folder.path());
        assert_eq!(chain["name"], "net");
        assert_eq!(chain["plugins"][0], json!({"type": "bridge", "bridge": "cni0"}));
        assert_eq!(chain["plugins"][1]["type"], PLUGIN);

        // What cannot be read leaves the chain as it is.
        for file in ["05-bridge.conf", "10-flannel.conflist"] {
            fs::remove_file(folder.path().join(file)).unwrap();
        }
        let error = write_chain(folder.path(), run).unwrap_err().to_string();
        assert!(error.contains("20-other.conf"), "{error}");
        assert_eq!(written(folder.path())["name"], "net");
    }

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        for (network, words) in [
            (json!({"plugins": []}), "no `name`"),
            (json!({"name": "n"}), "neither `plugins` nor a `type`"),
            (json!({"name": "n", "plugins": []}), "no plugins"),
            (json!({"name": "n", "plugins": [{"type": PLUGIN}]}), "no plugins"),
        ] {
            let error = with_plugin(network, Path::new("/run")).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
