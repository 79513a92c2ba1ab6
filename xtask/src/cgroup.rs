//! The tests of what a local process may use where the kernel's cgroups hold it to that.
//!
//! A cgroup that may be handed to them is seldom there: not in most containers, nor for most users. So they run as the
//! only program of a small virtual machine, on a kernel of their own.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::Result;
use crate::workspace::{Workspace, answers, is_root, output, run};

/// Names a delegated folder of the cgroup tree to use instead of a virtual machine.
const VARIABLE: &str = "FUNCTION_GATEWAY_TEST_CGROUP";
/// The part of the names of these tests.
const TESTS: &str = "in_cgroup";
const KERNEL: &str = "linux-image-cloud-amd64";
/// What the machine says last, with the exit status of the tests.
const ENDED: &str = "tests ended with ";
/// Longer than they ever take, in seconds.
const PATIENCE: &str = "600";

/// The first program of the machine. Where that ends, so does the machine.
const INIT: &str = "\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
echo 1 > /proc/sys/kernel/printk
mkdir /sys/fs/cgroup/test
for folder in /sys/fs/cgroup /sys/fs/cgroup/test; do echo '+memory +cpu' > $folder/cgroup.subtree_control; done
FUNCTION_GATEWAY_TEST_CGROUP=/sys/fs/cgroup/test /tests --ignored in_cgroup 2>&1
echo \"tests ended with $?\"
poweroff -f
";

/// Whether the program that the machine runs in is there, or none is needed.
pub(crate) fn has_machine() -> bool {
    !needs_machine() || answers(Command::new("qemu-system-x86_64").arg("--version"))
}

/// Whether the program that the machine holds its tools in is there, or none is needed.
pub(crate) fn has_tools() -> bool {
    !needs_machine() || answers(Command::new("busybox").arg("true"))
}

fn needs_machine() -> bool {
    std::env::var_os(VARIABLE).is_none() && std::env::consts::ARCH == "x86_64"
}

pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut tests = workspace.cargo(["test", "-p", "function-gateway-local-process", "--all-features"]);
    tests.args(["--test", "cgroup"]);
    if std::env::var_os(VARIABLE).is_some() {
        return run(tests.args(["--", "--ignored", TESTS]));
    }
    if std::env::consts::ARCH != "x86_64" {
        return Err(format!("the virtual machine is for x86-64: set {VARIABLE} to a delegated folder of cgroup v2"));
    }
    let program = built(&output(tests.args(["--no-run", "--message-format", "json-render-diagnostics"]))?)?;
    let folder = workspace.target().join("cgroup");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let kernel = kernel(&folder.join("kernel"))?;
    let image = image(&folder, &program)?;

    let mut machine = Command::new("timeout");
    // By translation: the machines that this runs on are often virtual themselves, and some nest badly.
    machine.args(["--foreground", PATIENCE, "qemu-system-x86_64", "-accel", "tcg", "-m", "2048", "-smp", "2"]);
    machine.arg("-kernel").arg(kernel).arg("-initrd").arg(image);
    machine.args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init", "-no-reboot", "-nic", "none"]);
    machine.args(["-display", "none", "-monitor", "none", "-serial", "stdio"]);
    passed(&watched(&mut machine)?)
}

/// Runs the machine, shows what it says as it comes, and gives that.
fn watched(machine: &mut Command) -> Result<String> {
    let failed = |error: std::io::Error| format!("the virtual machine: {error}");
    let mut running = machine.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut said = String::new();
    if let Some(console) = running.stdout.take() {
        for line in BufReader::new(console).split(b'\n') {
            let line = line.map_err(failed)?;
            let line = String::from_utf8_lossy(&line).replace('\r', "");
            println!("{line}");
            said.push_str(&line);
            said.push('\n');
        }
    }
    let status = running.wait().map_err(failed)?;
    if status.success() { Ok(said) } else { Err(format!("the virtual machine ended with {status}")) }
}

/// Whether the machine has come to the end of the tests, and they passed.
fn passed(said: &str) -> Result<()> {
    match said.lines().rev().find_map(|line| line.strip_prefix(ENDED)) {
        Some("0") => Ok(()),
        Some(status) => Err(format!("the tests in the virtual machine ended with exit status {status}")),
        None => Err("the virtual machine ended before the tests did".to_owned()),
    }
}

/// The program among cargo's messages.
fn built(messages: &str) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let mut messages = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    messages.find_map(|message| message.executable).ok_or_else(|| "cargo has built no test program".to_owned())
}

/// Debian's kernel, unpacked and not installed.
fn kernel(folder: &Path) -> Result<PathBuf> {
    let found = || {
        let mut files = fs::read_dir(folder.join("boot")).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        files.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
    };
    if let Some(kernel) = found() {
        return Ok(kernel);
    }
    if is_root() {
        run(Command::new("apt-get").args(["update", "--quiet"]))?;
    }
    let depends = Command::new("apt-cache").args(["depends", "--important", KERNEL]).env("LC_ALL", "C").output();
    let depends = depends.map_err(|error| format!("`apt-cache depends {KERNEL}`: {error}"))?;
    let depends = String::from_utf8_lossy(&depends.stdout).into_owned();
    let image = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let image = image.ok_or_else(|| format!("apt knows no kernel by the name {KERNEL}:\n{depends}"))?;
    // It takes its place once it is whole.
    let unpacked = folder.with_extension("part");
    let at = |error: std::io::Error| format!("{}: {error}", unpacked.display());
    for stale in [folder, &unpacked] {
        if stale.exists() {
            fs::remove_dir_all(stale).map_err(at)?;
        }
    }
    fs::create_dir_all(&unpacked).map_err(at)?;
    run(Command::new("apt-get").args(["download", image]).current_dir(&unpacked))?;
    for package in fs::read_dir(&unpacked).map_err(at)?.flatten().map(|entry| entry.path()) {
        if package.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;
            fs::remove_file(&package).map_err(at)?;
        }
    }
    fs::rename(&unpacked, folder).map_err(at)?;
    found().ok_or_else(|| format!("the package {image} holds no kernel"))
}

/// The machine's file system: the tests, a shell with its tools, and the libraries that these need.
fn image(folder: &Path, program: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    let at = |error: std::io::Error| format!("{}: {error}", root.display());
    if root.exists() {
        fs::remove_dir_all(&root).map_err(at)?;
    }
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "usr/bin"] {
        fs::create_dir_all(root.join(name)).map_err(at)?;
    }
    let busybox = PathBuf::from(output(Command::new("sh").args(["-c", "command -v busybox"]))?.trim());
    fs::copy(&busybox, root.join("bin/busybox")).map_err(at)?;
    run(Command::new("strip").arg("-o").arg(root.join("tests")).arg(program))?;
    for library in libraries(&busybox).chain(libraries(program)) {
        let place = root.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(place.parent().unwrap_or(&root)).map_err(at)?;
        fs::copy(&library, &place).map_err(at)?;
    }
    fs::write(root.join("init"), INIT).map_err(at)?;
    run(Command::new("chmod").arg("755").arg(root.join("init")))?;
    run(Command::new("sh").args(["-c", "find . | busybox cpio -o -H newc > ../image"]).current_dir(&root))?;
    Ok(folder.join("image"))
}

/// What a program is linked to; nothing where it is linked to nothing.
fn libraries(program: &Path) -> impl Iterator<Item = PathBuf> {
    let listed = Command::new("ldd").arg(program).output().map(|output| output.stdout).unwrap_or_default();
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let paths: Vec<_> = listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
    paths.into_iter().filter(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_the_messages() {
        let messages =
            "{\"reason\":\"compiler-artifact\",\"executable\":null}\nnote\n{\"executable\":\"/t/cgroup-1\"}\n";
        assert_eq!(built(messages).unwrap(), PathBuf::from("/t/cgroup-1"));
        assert!(built("{}").is_err());
    }

    #[test]
    fn a_machine_that_did_not_come_to_the_end_has_failed() {
        assert!(passed("booting\ntests ended with 0\npower down").is_ok());
        assert!(passed("tests ended with 101\n").unwrap_err().contains("101"));
        assert!(passed("Kernel panic").is_err());
        assert!(INIT.contains(ENDED) && INIT.contains(TESTS) && INIT.contains(VARIABLE));
    }
}
