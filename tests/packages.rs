//! What people install: the Debian package, the image, `cargo install`, and the list of crates that comes with them.
//!
//! A package is installed, upgraded and purged in a copy of this system that is thrown away: an overlay in a mount namespace of its
//! own, so nothing here is changed. The image is a folder with the files that the Dockerfile copies. Both need root. They hold
//! this test's own binary, or the one that `COFFERDAM_PACKAGED_BINARY` names, such as a static one. `COFFERDAM_AARCH64_BINARY` names one
//! that tools/cross has built; it runs by an emulator.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use program::{Folder, cofferdam, run, shown};
use serde_json::Value;
use service::{Service, children, free_address};

#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

/// The time of everything in these packages.
const EPOCH: &str = "1700000000";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skipped("only root can mount and change its root");
    }
    is_root
}

fn is_installed(program: &str) -> bool {
    let there = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()));
    if !there {
        skipped(&format!("there is no {program} (tools/test installs it)"));
    }
    there
}

/// A program in the environment of this test.
fn host(program: &str) -> Command {
    let mut command = program::command(Path::new(program), [""; 0]);
    command.envs(std::env::vars_os());
    command
}

/// Runs it to its end, which must be a good one; what it printed.
#[track_caller]
fn said(command: &mut Command) -> String {
    let output = run(command, b"");
    assert!(output.status.success(), "{command:?}: {}", all(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How it ended, and the end of what it wrote.
fn all(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = stderr.lines().rev().take(20).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    format!("{}\n… {}", shown(output), tail.join("\n"))
}

/// The binary that is packed: without symbols, as a release has none.
fn packed_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("COFFERDAM_PACKAGED_BINARY") {
            return PathBuf::from(path);
        }
        // Beside the binary, and for all tests of this program: it would go with a folder of the first of them.
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cofferdam-stripped");
        let own = path.with_extension(std::process::id().to_string());
        said(host("strip").arg("-o").arg(&own).arg(cofferdam()));
        std::fs::rename(&own, &path).expect("a temporary file");
        path
    })
}

fn package(arguments: &[&str]) -> Command {
    let mut command = host(&root().join("tools/package").display().to_string());
    command.args(arguments).env("SOURCE_DATE_EPOCH", EPOCH);
    command
}

/// Makes a package of this revision; where it is.
#[track_caller]
fn deb(folder: &Folder, revision: &str) -> PathBuf {
    let output = folder.path(revision).display().to_string();
    let binary = packed_binary().display().to_string();
    let arguments = ["deb", "--binary", &binary, "--revision", revision, "--output", &output];
    PathBuf::from(said(&mut package(&arguments)).trim())
}

/// `$1` is a folder, `$2` and `$3` are two versions of the package.
const LIFE_OF_A_PACKAGE: &str = r#"
mount -t tmpfs none "$1" && cd "$1" && mkdir upper work root &&
    mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" root || exit 77
mount --bind /dev root/dev
mount --bind /proc root/proc
# No service manager is seen there.
mount -t tmpfs none root/run
cp "$2" root/one.deb
cp "$3" root/two.deb
inside() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$(command -v chroot)" $as root "$@"; }
as=
# Triggers, such as the index of man pages, are other packages'.
dpkg_() { inside dpkg --no-triggers --force-unsafe-io "$@"; }

dpkg_ --install /one.deb
inside dpkg --verify cofferdam
inside cofferdam --version
test -L root/etc/systemd/system/multi-user.target.wants/cofferdam.service
test -L root/etc/systemd/system/sockets.target.wants/cofferdam.socket
inside getent passwd cofferdam

# As the unit runs it: the account, the configuration, a directory of its own.
inside install -d -o cofferdam -m 700 /run/cofferdam
as=--userspec=cofferdam
inside env COFFERDAM_CONFIG=/etc/cofferdam/cofferdam.json RUNTIME_DIRECTORY=/run/cofferdam \
    cofferdam serve --set web.bind=127.0.0.1:0 >ready 2>log & service=$!
as=
trap 'kill "$service" 2>/dev/null || true' EXIT
tries=0
until grep -q ready ready; do
    tries=$((tries + 1)); test "$tries" -lt 300; kill -0 "$service"; sleep 0.1
done
url=$(sed -n 's/^ready \(http[^ ]*\).*/\1/p' ready)
inside cofferdam health --url "$url"
# The shell that waits for it is its parent.
kill "$(sed 's/.*pid=//' ready)"
wait "$service"
trap - EXIT

echo '{"version":1,"web":{"max_inflight":77}}' >root/etc/cofferdam/cofferdam.json
inside install -d -o cofferdam -m 700 /var/lib/cofferdam/journal
dpkg_ --install /two.deb
inside dpkg-query --show cofferdam | grep -q -- '-2$'
inside cofferdam check --config /etc/cofferdam/cofferdam.json | grep -q 'max_inflight = 77'

dpkg_ --remove cofferdam
test ! -e root/usr/bin/cofferdam
grep -q 77 root/etc/cofferdam/cofferdam.json
test -d root/var/lib/cofferdam/journal

dpkg_ --purge cofferdam
rm root/one.deb root/two.deb
find upper -name '*cofferdam*'
# What may have changed besides: the account, and the package manager's own books.
find upper ! -type d | grep -Ev '^upper/(etc/(passwd|group|shadow|gshadow)-?|etc/\.pwd\.lock|var/lib/dpkg/.*|var/log/dpkg\.log)$' || true
grep -q '^cofferdam:' root/etc/passwd
echo gone
"#;

#[test]
fn the_debian_package_is_the_same_twice_installs_runs_upgrades_and_purges() {
    if !is_installed("dpkg-deb") {
        return;
    }
    let folder = Folder::new();
    let first = deb(&folder, "1");
    // Another builder: its umask, its time zone, its place.
    let again = folder.path("again");
    let script = "umask 077; exec \"$0\" deb --binary \"$1\" --output \"$2\"";
    let mut other = host("sh");
    other.args(["-c", script]).arg(root().join("tools/package")).arg(packed_binary()).arg(&again);
    said(other.env("SOURCE_DATE_EPOCH", EPOCH).env("TZ", "Pacific/Auckland"));
    let bytes = |path: &Path| std::fs::read(path).expect("a package");
    let name = first.file_name().expect("a name");
    assert!(bytes(&first) == bytes(&again.join(name)), "two builds differ");

    if is_installed("lintian") {
        let mut lintian = host("lintian");
        lintian.args(["--allow-root", "--fail-on", "error,warning"]);
        if std::env::var_os("COFFERDAM_PACKAGED_BINARY").is_none() {
            // The tests' own binary is no static one.
            lintian.args(["--suppress-tags", "missing-dependency-on-libc"]);
        }
        let output = run(lintian.arg(&first), b"");
        assert!(output.status.success(), "{}", all(&output));
    }
    if is_installed("systemd-analyze") {
        assert_hardened(&first, &folder);
    }
    if !is_root() {
        return;
    }
    let second = deb(&folder, "2");
    let place = folder.path("system");
    std::fs::create_dir(&place).expect("a temporary folder");
    let mut life = host("unshare");
    life.args(["--mount", "--propagation", "private", "sh", "-euxc", LIFE_OF_A_PACKAGE, "sh"]);
    let output = run(life.args([&place, &first, &second]), b"");
    if output.status.code() == Some(77) {
        return skipped(&format!("no overlay can be mounted here: {}", all(&output)));
    }
    assert!(output.status.success(), "{}", all(&output));
    let left = String::from_utf8_lossy(&output.stdout);
    let left = left.rsplit("Purging configuration files").next().expect("the purge");
    let left: Vec<&str> = left.lines().skip(1).collect();
    assert_eq!(left, ["gone"], "purge leaves something, or changes what is not its own");
}

/// The package under a service manager that has booted, in an overlay too. `$1` is a folder, `$2` and `$3` are two versions.
const LIFE_UNDER_A_MANAGER: &str = r#"
mount -t tmpfs none "$1" && cd "$1" && mkdir upper work root &&
    mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" root || exit 77
# Its own: the machine's may have no manager.
mount -t tmpfs none /run && mkdir /run/systemd
cp "$2" root/one.deb
cp "$3" root/two.deb
# An image of a container may say that no service is to be started.
rm -f root/usr/sbin/policy-rc.d
fails() { inside journalctl --no-pager --unit cofferdam --lines 10 >&2; echo "$1" >&2; exit 1; }
until_() { what=$1; shift; tries=0; until "$@" >/dev/null 2>&1; do
    tries=$((tries + 1)); test "$tries" -lt 600 || fails "never: $what"; sleep 0.1; done; }
inside() { nsenter --target "$leader" --mount --uts --ipc --net --pid --cgroup \
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }
# Nothing that this machine has enabled is started there, but for sockets.
boot() {
    setpriv --pdeathsig TERM systemd-nspawn --boot --quiet --directory root --private-network --register=no --keep-unit \
        --machine cofferdam systemd.unit=basic.target >boot.log 2>&1 </dev/null & manager=$!
    leader=
    tries=0
    until [ "$leader" ] && inside systemctl is-active --quiet basic.target; do
        tries=$((tries + 1))
        kill -0 "$manager" && test "$tries" -lt 300 || { cat boot.log >&2; exit 77; }
        sleep 0.1
        leader=$(cat "/proc/$manager/task/$manager/children")
        leader=${leader%% *}
    done 2>/dev/null
    trap 'kill "$manager" 2>/dev/null || true; wait "$manager" || true' EXIT
}
halt() { trap - EXIT; inside systemctl --no-block poweroff; wait "$manager"; }
main() { inside systemctl show --property MainPID --value cofferdam; }
serves() { inside systemctl is-active --quiet cofferdam && inside cofferdam health; }
another() { now=$(main) && test "$now" != 0 && test "$now" != "$before" && serves; }
install_() { inside dpkg --no-triggers --force-unsafe-io --install "$1"; }

boot
install_ /one.deb
until_ "it serves" serves
test "$(main)" = "$(inside pgrep --oldest cofferdam)"

inside mkdir -p /run/systemd/system/cofferdam.service.d
# A quick watchdog, and more starts than a person would have.
printf '[Unit]\nStartLimitIntervalSec=0\n[Service]\nWatchdogSec=2s\n' |
    inside tee /run/systemd/system/cofferdam.service.d/quick.conf
inside systemctl daemon-reload
inside systemctl restart cofferdam
for signal in KILL STOP; do
    before=$(main)
    inside kill -"$signal" "$before"
    until_ "another one serves after $signal" another
done
inside journalctl --unit cofferdam | grep -q 'Watchdog timeout'
before=$(main)
inside systemctl reload cofferdam
inside journalctl --sync
inside journalctl --unit cofferdam | grep -q 'SIGHUP'
test "$(main)" = "$before"

# A machine that stands still for two seconds is no reason to cut somebody off.
printf '[Unit]\nStartLimitIntervalSec=0\n' | inside tee /run/systemd/system/cofferdam.service.d/quick.conf
inside systemctl daemon-reload
# With a journal what was accepted is there after a boot.
echo '{"version":1,"runtime":{"platform":{"queue":{"journal":{"dir":"/var/lib/cofferdam/journal"}}}}}' >config
cp config root/etc/cofferdam/cofferdam.json
inside systemctl restart cofferdam
# Strangers with a connection each, without a pause, while it is upgraded and taken back, each ten times.
inside python3 -c "$STRANGERS" >strangers & strangers=$!
for _ in 1 2 3 4 5 6 7 8 9 10; do
    install_ /two.deb
    install_ /one.deb
done
inside pkill --oldest --full STRANGERS
wait "$strangers" || fails "somebody was refused: $(cat strangers)"
id=$(inside cofferdam jobs submit echo kept --delay-ms 5000)
halt
boot
# The first connection has it started.
until_ "it serves" inside cofferdam health
has_run() { inside cofferdam jobs show "$id" | grep succeeded; }
until_ "the job has run" has_run

inside dpkg --no-triggers --purge cofferdam
inside systemctl --quiet is-active cofferdam cofferdam.socket && exit 1
test -z "$(inside ss --no-header --listening --tcp)"
test -z "$(inside pgrep cofferdam)"
halt
cat strangers
"#;

/// Ends well at SIGTERM, unless somebody was refused, or cut off without an answer.
const STRANGERS: &str = r#"
import http.client, signal, sys
STRANGERS = {}
def end(*_):
    print(STRANGERS)
    sys.exit(0 if set(STRANGERS) == {200} else 1)
signal.signal(signal.SIGTERM, end)
while True:
    try:
        stranger = http.client.HTTPConnection("127.0.0.1", 8080, timeout=30)
        stranger.request("POST", "/v1/jobs/echo", "1")
        said = stranger.getresponse().status
        stranger.close()
    except OSError as error:
        said = repr(error)
    STRANGERS[said] = STRANGERS.get(said, 0) + 1
"#;

#[test]
fn under_a_booted_manager_it_restarts_reloads_and_is_upgraded_without_a_refusal() {
    if !is_root() || !is_installed("systemd-nspawn") || !is_installed("dpkg-deb") {
        return;
    }
    let folder = Folder::new();
    let (first, second) = (deb(&folder, "1"), deb(&folder, "2"));
    let place = folder.path("system");
    std::fs::create_dir(&place).expect("a temporary folder");
    let mut life = host("unshare");
    life.args(["--mount", "--propagation", "private", "sh", "-euxc", LIFE_UNDER_A_MANAGER, "sh"]);
    let output = run(life.env("STRANGERS", STRANGERS).args([&place, &first, &second]), b"");
    if output.status.code() == Some(77) {
        return skipped(&format!("no service manager can be booted here: {}", all(&output)));
    }
    assert!(output.status.success(), "{}", all(&output));
    println!("{}", String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default());
}

/// The units in it are as hardened as those under dist/, and sound.
fn assert_hardened(package: &Path, folder: &Folder) {
    let tree = folder.path("tree");
    said(host("dpkg-deb").arg("-x").arg(package).arg(&tree));
    let unit = tree.join("usr/lib/systemd/system/cofferdam.service");
    said(host("systemd-analyze").args(["security", "--offline=true", "--threshold=15"]).arg(&unit));
    let text = std::fs::read_to_string(&unit).expect("the unit");
    for line in [
        "ExecStart=/usr/bin/cofferdam serve",
        "Environment=COFFERDAM_CONFIG=/etc/cofferdam/cofferdam.json",
        "StateDirectory=cofferdam",
        "User=cofferdam",
    ] {
        assert!(text.lines().any(|of| of == line), "no {line} in {text}");
    }
    // The program is not where the unit says: a copy names one that is there.
    let copy = folder.file("cofferdam.service", text.replace("/usr/bin/cofferdam", "/bin/true"));
    let socket = folder.file(
        "cofferdam.socket",
        std::fs::read(tree.join("usr/lib/systemd/system/cofferdam.socket")).expect("the unit"),
    );
    let output = run(host("systemd-analyze").arg("verify").args([copy, socket]), b"");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", all(&output));
}

/// The options of a page of `--help`: whatever begins with two dashes in it, its example left out.
fn options(page: &str) -> BTreeSet<String> {
    let page = page.split("\nexample: ").next().expect("a page");
    let starts = page.match_indices("--").filter(|(at, _)| page[..*at].ends_with([' ', '[']));
    let words = starts.map(|(at, _)| {
        let end = page[at..].find(|c: char| c != '-' && !c.is_ascii_lowercase()).unwrap_or(page.len() - at);
        page[at..at + end].to_owned()
    });
    words.collect()
}

#[test]
fn man_pages_and_completions_have_what_help_says() {
    let folder = Folder::new();
    let share = folder.path("share");
    let binary = cofferdam().display().to_string();
    said(&mut package(&["pages", "--binary", &binary, "--output", &share.display().to_string()]));
    let overview = said(host(&binary).arg("--help"));
    let rows = overview.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let commands: Vec<&str> = rows.filter(|word| !word.starts_with('-')).collect();
    assert!(commands.len() > 8, "{overview}");
    let (has_groff, has_fish) = (is_installed("groff"), is_installed("fish"));
    if is_installed("zsh") {
        said(host("zsh").arg("-n").arg(share.join("zsh/vendor-completions/_cofferdam")));
    }
    let bash = |words: &str| {
        let script = "source \"$0\"; COMP_WORDS=($1 '--'); \
                      COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _cofferdam; printf '%s\\n' \"${COMPREPLY[@]}\"";
        let script = said(
            host("bash")
                .args(["-c", script])
                .arg(share.join("bash-completion/completions/cofferdam"))
                .arg(words),
        );
        script.lines().map(str::to_owned).collect::<BTreeSet<String>>()
    };
    let fish = |words: &str| {
        let script = format!("source $argv[1]; complete -C '{words} --'");
        let lines = said(
            host("fish")
                .args(["--no-config", "-c", &script])
                .arg(share.join("fish/vendor_completions.d/cofferdam.fish")),
        );
        let words = lines.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned());
        words.collect::<BTreeSet<String>>()
    };
    for command in commands {
        let page = said(host(&binary).args([command, "--help"]));
        let mut options = options(&page);
        let man = share.join(format!("man/man1/cofferdam-{command}.1.gz"));
        let roff = said(host("gzip").arg("-dc").arg(&man));
        for option in &options {
            assert!(roff.contains(&option.replace('-', "\\-")), "cofferdam-{command}(1) has no {option}");
        }
        if has_groff {
            let output = run(host("groff").args(["-man", "-Tutf8", "-ww", "-z"]), roff.as_bytes());
            assert!(output.status.success() && output.stderr.is_empty(), "{command}: {}", all(&output));
        }
        if has_fish {
            assert_eq!(fish(&format!("cofferdam {command}")), options, "fish, {command}");
        }
        options.insert("--help".into());
        assert_eq!(bash(&format!("cofferdam {command}")), options, "bash, {command}");
    }
}

/// Name and version to checksum of each crate in Cargo.lock.
fn locked() -> BTreeMap<(String, String), Option<String>> {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).expect("the lock file");
    let of = |part: &str, key: &str| {
        let line = part.lines().find_map(|line| line.strip_prefix(&format!("{key} = \"")));
        line.map(|value| value.trim_end_matches('"').to_owned())
    };
    let parts = lock.split("[[package]]").skip(1);
    parts
        .map(|part| ((of(part, "name").unwrap(), of(part, "version").unwrap()), of(part, "checksum")))
        .collect()
}

#[test]
fn the_list_of_crates_is_whole_with_redis_and_without() {
    let locked = locked();
    let builds: [&[&str]; 2] = [&[], &["--no-default-features"]];
    let mut counts = Vec::new();
    for features in builds {
        let list = said(package(&["sbom"]).args(features));
        assert_eq!(list, said(package(&["sbom"]).args(features)), "two runs differ");
        let list: Value = serde_json::from_str(&list).expect("JSON");
        assert_eq!((&list["bomFormat"], &list["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
        let number = list["serialNumber"].as_str().expect("a number");
        assert!(number.starts_with("urn:uuid:") && number.len() == 45, "{number}");
        assert_eq!(list["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
        let main = &list["metadata"]["component"];
        assert_eq!((&main["name"], &main["type"]), (&"cofferdam".into(), &"application".into()));

        let text =
            |of: &Value, key: &str| of[key].as_str().unwrap_or_else(|| panic!("no {key}: {of}")).to_owned();
        let mut listed = BTreeSet::new();
        for component in list["components"].as_array().expect("components") {
            let (name, version) = (text(component, "name"), text(component, "version"));
            assert_eq!(text(component, "type"), "library");
            assert_eq!(text(component, "purl"), format!("pkg:cargo/{name}@{version}"));
            let licence = text(&component["licenses"][0], "expression");
            assert!(!licence.contains('/') && !licence.is_empty(), "{name}: {licence}");
            let hash = &component["hashes"][0];
            assert_eq!(text(hash, "alg"), "SHA-256");
            let checksum = locked.get(&(name.clone(), version.clone())).expect("it is in Cargo.lock");
            assert_eq!(Some(text(hash, "content")), *checksum, "{name}");
            assert!(listed.insert((name, version)), "{component} stands twice");
        }
        // What cargo says it would build, whatever platform or feature the rest of the lock file is for.
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let mut tree = host(&cargo);
        tree.args([
            "tree",
            "-e",
            "normal,build",
            "--prefix",
            "none",
            "--locked",
            "--offline",
            "--manifest-path",
        ]);
        let tree = said(tree.arg(root().join("Cargo.toml")).args(features));
        let built: BTreeSet<(String, String)> = tree
            .lines()
            .filter_map(|line| line.split_once(" v"))
            .map(|(name, rest)| (name.to_owned(), rest.split(' ').next().unwrap_or_default().to_owned()))
            .filter(|(name, _)| name != "cofferdam")
            .collect();
        assert_eq!(listed, built);
        // Each arrow points at somebody who is there, and nobody is there without an arrow.
        let known: BTreeSet<String> =
            listed.iter().map(|(name, version)| format!("pkg:cargo/{name}@{version}")).collect();
        let uses = list["dependencies"].as_array().expect("arrows").iter();
        let used = uses
            .flat_map(|of| of["dependsOn"].as_array().expect("a list"))
            .map(|to| to.as_str().expect("a name"));
        assert_eq!(used.map(str::to_owned).collect::<BTreeSet<_>>(), known);
        counts.push(listed.len());
    }
    assert!(counts[1] < counts[0], "Redis brings crates: {counts:?}");
}

/// What the image begins with: PATH is of no use in it, `/proc` and `/dev` are what a container engine gives.
const IN_THE_IMAGE: &str = r#"
cd "$1"; shift
mount --bind /proc proc
mount --bind /dev dev
exec env -i "$1" "$(command -v chroot)" "--userspec=$2" . "$3" "$4"
"#;

/// The words of the line that begins with this keyword: `["a", "b"]`.
fn words(dockerfile: &str, keyword: &str) -> Vec<String> {
    let list = dockerfile.lines().find_map(|line| {
        let rest = line.strip_prefix(keyword)?;
        rest.find('[').map(|at| &rest[at..])
    });
    serde_json::from_str(list.unwrap_or_else(|| panic!("no {keyword}"))).expect("a list of words")
}

#[test]
fn the_image_of_the_dockerfile_serves_as_nobody_from_an_otherwise_empty_root() {
    if !is_root() {
        return;
    }
    let dockerfile = std::fs::read_to_string(root().join("Dockerfile")).expect("the Dockerfile");
    let (build, image) =
        dockerfile.split_once("\nFROM scratch\n").expect("a last stage that begins with nothing");
    let folder = Folder::new();
    let place = folder.path("image");
    for of_the_engine in ["proc", "dev"] {
        std::fs::create_dir_all(place.join(of_the_engine)).expect("a temporary folder");
    }
    let mode =
        |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("our own");
    let mut copied = 0;
    for line in image.lines().filter_map(|line| line.strip_prefix("COPY --from=build ")) {
        let (from, to) = line.split_once(" /").expect("whence and where to");
        let to = place.join(to);
        match from {
            "/cofferdam" => {
                assert!(
                    build.contains("+crt-static") && build.contains("/release/cofferdam\" /cofferdam"),
                    "{build}"
                );
                program::copied(packed_binary(), &to);
            }
            "/empty-tmp" => {
                assert!(build.contains("mkdir -m 1777 /empty-tmp"), "{build}");
                std::fs::create_dir(&to).expect("a temporary folder");
                mode(&to, 0o1777);
            }
            other => panic!("this test does not know what {other} is"),
        }
        copied += 1;
    }
    assert_eq!(copied, image.matches("COPY ").count(), "each file of the image is one from the build");
    // The tests' own binary has libraries; a static one has none, and this finds none.
    let libraries = run(host("ldd").arg(packed_binary()), b"");
    for library in
        String::from_utf8_lossy(&libraries.stdout).split_whitespace().filter(|word| word.starts_with('/'))
    {
        let to = place.join(&library[1..]);
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("a temporary folder");
        std::fs::copy(library, to).expect("a library");
    }

    let user = image.lines().find_map(|line| line.strip_prefix("USER ")).expect("a user");
    assert!(!user.starts_with('0') && user.contains(':'), "{user}");
    // The port of the default may be somebody else's here.
    let bind = format!("COFFERDAM_WEB__BIND={}", free_address());
    let started = |words: &[String]| {
        let [program, word] = words else { panic!("{words:?}") };
        let mut command = host("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc", IN_THE_IMAGE, "sh"]);
        command.arg(&place).args([&bind, user, program, word]);
        command
    };
    let entry = [words(image, "ENTRYPOINT "), words(image, "CMD ")].concat();
    let service = Service::from(started(&entry).spawn().expect("unshare"));
    let health = words(image, "HEALTHCHECK ");
    said(&mut started(&health));
    assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
    let processes = [service.pid]
        .into_iter()
        .chain(["web", "executor"].iter().flat_map(|role| children(service.pid, role)));
    let processes: Vec<u32> = processes.collect();
    assert!(processes.len() >= 3, "{processes:?}");
    let uid = user.split(':').next().expect("a number");
    for pid in processes {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("its user");
        assert!(uids.split_whitespace().all(|of| of == uid), "{pid}: {uids}");
        let is_in = std::fs::read_link(format!("/proc/{pid}/root")).expect("its root");
        assert!(is_in.ends_with("image"), "{}", is_in.display());
    }
    let address = service.address;
    assert_eq!(service.stop().status.code(), Some(0));
    // Nobody answers there any more, so the check fails.
    assert_eq!(run(&mut started(&health), b"").status.code(), Some(1), "{address}");
}

/// The service has one process here: what the emulated one would start is started as a program of this machine.
#[test]
fn a_static_binary_for_another_architecture_serves_and_is_packed() {
    let Some(binary) = std::env::var_os("COFFERDAM_AARCH64_BINARY") else {
        return skipped(
            "COFFERDAM_AARCH64_BINARY names none (tools/test builds it where a cross compiler can be installed)",
        );
    };
    const EMULATOR: &str = "qemu-aarch64-static";
    let emulated = |words: &[&str]| {
        let mut command = host(EMULATOR);
        command.arg(&binary).args(words);
        command
    };
    let own = said(host(&cofferdam().display().to_string()).args(["facts", "--json"]));
    let mut own: Value = serde_json::from_str(&own).expect("JSON");
    let theirs = said(&mut emulated(&["facts", "--json"]));
    let mut theirs: Value = serde_json::from_str(&theirs).expect("JSON");
    assert_eq!(theirs["binary"]["linking"], "static");
    // All else is the same: crates, features, handlers, limits.
    for facts in [&mut own, &mut theirs] {
        for of_the_build in ["linking", "build"] {
            facts["binary"][of_the_build] = Value::Null;
        }
    }
    assert_eq!(own["binary"], theirs["binary"]);
    assert_eq!(own["limits"], theirs["limits"]);

    let lines = "{\"a\":1}\n{\"b\":2}\n";
    let inline = ["--set", "runtime.platform.bootstrap.mode=inline"];
    let batch =
        run(&mut emulated(&[&["batch", "--handler", "echo"][..], &inline].concat()), lines.as_bytes());
    assert_eq!(String::from_utf8_lossy(&batch.stdout), lines, "{}", all(&batch));
    let mut serve = emulated(&[&["serve", "--set", "web.bind=127.0.0.1:0"][..], &inline].concat());
    let piped = std::process::Stdio::piped;
    let service = Service::from(serve.stdout(piped()).stderr(piped()).spawn().expect("the emulator"));
    assert_eq!(service.post("/v1/jobs/echo", "[1]").text(), "[1]");
    assert_eq!(service.stop().status.code(), Some(0));

    if !is_installed("dpkg-deb") {
        return;
    }
    let folder = Folder::new();
    let (output, binary) = (folder.path("deb").display().to_string(), binary.to_string_lossy());
    let target = "aarch64-unknown-linux-gnu";
    let mut deb = package(&["deb", "--binary", &binary, "--target", target, "--output", &output]);
    let deb = PathBuf::from(said(deb.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", EMULATOR)).trim());
    let name = format!("cofferdam_{}-1_arm64.deb", env!("CARGO_PKG_VERSION"));
    assert!(deb.ends_with(name), "{}", deb.display());
    assert_eq!(said(host("dpkg-deb").arg("-f").arg(&deb).arg("Architecture")), "arm64\n");
    let files = said(host("dpkg-deb").arg("-c").arg(&deb));
    for file in ["usr/bin/cofferdam", "usr/share/man/man1/cofferdam-serve.1.gz"] {
        assert!(files.contains(file), "{files}");
    }
}

fn cargo(command: &str) -> Command {
    let mut cargo = host(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo.args([command, "--offline", "--locked"]).current_dir(root());
    cargo
}

#[test]
fn the_crate_has_each_file_of_ours_and_no_other() {
    let listed = run(cargo("package").args(["--list", "--allow-dirty"]), b"");
    let stderr = String::from_utf8_lossy(&listed.stderr);
    assert!(listed.status.success() && !stderr.contains("ignoring"), "{stderr}");
    let listed = String::from_utf8_lossy(&listed.stdout);
    let listed: BTreeSet<&str> = listed.lines().collect();
    let tracked = said(host("git").arg("-C").arg(root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]));
    let tracked: BTreeSet<&str> = tracked.lines().filter(|name| root().join(name).is_file()).collect();
    let by_cargo = BTreeSet::from([".cargo_vcs_info.json", "Cargo.toml.orig"]);
    let strange: Vec<&&str> = listed.difference(&tracked).filter(|name| !by_cargo.contains(**name)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    let missing: Vec<&&str> = tracked.difference(&listed).filter(|name| name.starts_with("src/")).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for name in ["Cargo.lock", "LICENSE-MIT", "LICENSE-APACHE", "README.md", "CHANGELOG.md"] {
        assert!(listed.contains(name), "{name}");
    }
}

#[test]
fn cargo_install_gives_a_binary_that_says_its_version() {
    let folder = Folder::new();
    // Where this test was built: all of it is there, so that nothing is compiled again.
    let profile = cofferdam().parent().expect("a folder").to_owned();
    let mut install = cargo("install");
    install.args(["--path", ".", "--no-track", "--bin", "cofferdam", "--root"]).arg(folder.path(""));
    install.env("CARGO_TARGET_DIR", profile.parent().expect("a folder"));
    if profile.ends_with("debug") {
        install.arg("--debug");
    }
    if !cfg!(feature = "redis") {
        install.arg("--no-default-features");
    }
    said(&mut install);
    let binary = folder.path("bin/cofferdam").display().to_string();
    let version = said(host(&binary).arg("--version"));
    assert_eq!(version.trim(), format!("cofferdam {}", env!("CARGO_PKG_VERSION")));
}
