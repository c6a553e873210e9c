//! What `invited setup` prints, run with the very programs that it is for. Prosody's and ejabberd's lines run in `prosody.rs`
//! and `ejabberd.rs`.

use std::fs::{File, Permissions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::harness::{
    Folder, PATIENCE, PROGRAM, Reply, Server, available, create_key, done, exchange, fails, run, wait_until,
};
use crate::prosody::{Prosody, Release, Site, make_invite, state};

const HOST: &str = "example.com";

#[test]
fn nginx_passes_on_what_is_ours_and_logs_no_token() {
    web_server("nginx", Path::new("/usr/sbin/nginx"), start_nginx);
}

#[test]
fn caddy_passes_on_what_is_ours_and_logs_no_token() {
    web_server("caddy", Path::new("/usr/bin/caddy"), start_caddy);
}

#[test]
fn apache_passes_on_what_is_ours_and_logs_no_token() {
    web_server("apache", Path::new("/usr/sbin/apache2"), start_apache);
}

/// Goes through the web server to the real `invited`, with its pages at the root and below a path.
fn web_server(name: &str, program: &Path, start: fn(&Folder, u16, &str) -> Process) {
    if !available(name, program.exists()) || !has_curl() {
        return;
    }
    for prefix in ["", "/chat.me"] {
        let folder = Folder::new();
        let key = create_key(&folder.db(), HOST);
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--trust-proxy", "--listen", "127.0.0.1:0", "--db"]).arg(folder.db());
        let server = Server::spawn(command.env("TMPDIR", folder.path()));
        let (addr, proxy) = start_on_free_port(|port| {
            done(&folder.db(), &["set", HOST, "url", &format!("http://127.0.0.1:{port}{prefix}")]);
            let snippet = done(&folder.db(), &["setup", name, HOST, "--listen", &server.addr.to_string()]);
            start(&folder, port, &snippet)
        });
        let ask = |method: &str, target: &str, more: &str, body: &str| {
            let text = format!(
                "{method} {target} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{more}Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            exchange(addr, text.as_bytes())
        };

        let made = ask("GET", &format!("{prefix}/invites_api?key={key}"), "", "");
        assert_eq!(made.status, 201, "{made:?}");
        let token = made.token();
        let location = made.header("location").unwrap();
        assert_eq!(location, format!("http://{addr}{prefix}/invite?{token}"));
        let page = ask("GET", &format!("{prefix}/invite?{token}"), "", "");
        assert_eq!(page.status, 200, "{page:?}");
        assert!(page.header("content-security-policy").is_some());
        // A link of the page leads on.
        let target = link_of(&page, prefix);
        assert_eq!(ask("GET", &target, "", "").status, 200, "{target}");

        assert_eq!(ask("GET", &format!("{prefix}/register?t={token}"), "", "").status, 200);
        let form = "Content-Type: application/x-www-form-urlencoded\r\n";
        let answer = ask("POST", &format!("{prefix}/register"), form, &format!("token={token}&user=&password="));
        assert!(answer.status == 400 && answer.body.contains("<form"), "{answer:?}");

        let bearer = format!("Authorization: Bearer {key}\r\n");
        let listed = ask("GET", &format!("{prefix}/invites_api/invites?limit=5"), &bearer, "");
        assert!(listed.status == 200 && listed.body.contains(&token), "{listed:?}");
        let other = ask("GET", &format!("{prefix}/invites_api?key={key}"), "", "").token();
        assert_eq!(ask("DELETE", &format!("{prefix}/invites_api/invites/{other}"), &bearer, "").status, 204);
        server.log_with("path=/invites_api/invites/- status=204");
        // The client's address is what the proxy says, whatever the client says.
        let mut curl = Command::new("curl");
        curl.args(["-s", "--interface", "127.0.0.2", "-H", "X-Forwarded-For: 192.0.2.9"]);
        assert!(curl.arg(format!("http://{addr}{prefix}/invites_api")).output().unwrap().status.success());
        let log = server.log_with("reason=key-missing");
        assert!(log.contains(" client=127.0.0.2\n"), "{log}");

        let lines = server.log().lines().count();
        for target in ["/", "/invited", "/invites_apis", "/registers", "/robots.txt", "/other/invite", "/favicon.ico"] {
            assert_eq!(ask("GET", &format!("{prefix}{target}"), "", "").status, 404, "{target}");
        }
        if !prefix.is_empty() {
            assert_eq!(ask("GET", "/invite?elsewhere", "", "").status, 404);
        }
        ask("GET", &format!("{prefix}/invite?{token}"), "", "");
        server.log_with("path=/invite status=200 reason=shown");
        let deadline = Instant::now() + PATIENCE;
        while server.log().lines().count() <= lines && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
        assert_eq!(server.log().lines().count(), lines + 1, "{}", server.log());

        // Nor when nobody answers behind it.
        drop(server);
        let referer = format!("Referer: http://{addr}{prefix}/invite?{token}\r\n");
        for target in [format!("{prefix}/invite?{token}"), format!("{prefix}/invites_api?key={key}")] {
            assert!(matches!(ask("GET", &target, &referer, "").status, 502 | 503), "{target}");
        }
        // What it does log shows that the tests look in the right places.
        ask("GET", "/seen-by-all-logs?x", "", "");
        let logs = || logs(folder.path());
        wait_until("the other requests are logged", || logs().contains("/seen-by-all-logs"));
        drop(proxy);
        let logs = logs();
        let secret = key.split_once('/').unwrap().1;
        for secret in [secret, &token, &other] {
            assert!(!logs.contains(secret), "{secret} is in a log:\n{logs}");
        }
    }
}

/// The target of the first link of a page that leads to another page of ours.
fn link_of(page: &Reply, base: &str) -> String {
    let link = page.body.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let mut ours = link.filter(|link| link.contains("/register?") || link.contains("/setup/"));
    let link = ours.next().unwrap_or_else(|| panic!("no link: {page:?}"));
    // They are relative to the base, of which they know nothing.
    format!("{base}/{}", link.replace("&amp;", "&"))
}

/// All that was logged: whatever is in a file that ends in `.log`.
fn logs(folder: &Path) -> String {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let logs = files.filter(|file| file.extension().is_some_and(|extension| extension == "log"));
    logs.map(|file| String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned()).collect()
}

fn start_nginx(folder: &Folder, port: u16, snippet: &str) -> Process {
    std::fs::create_dir_all(folder.file("snippets")).unwrap();
    std::fs::write(folder.file("snippets/invited.conf"), snippet).unwrap();
    let include = commands(snippet).into_iter().find(|line| line.starts_with("include")).unwrap();
    let path = folder.path().display();
    let user = if is_root() { "user root;" } else { "" };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {path}/{name};\n"))
        .concat();
    let config = format!(
        "daemon off; master_process off; {user} pid {path}/nginx.pid; error_log {path}/error.log info;\n\
         events {{}}\n\
         http {{ access_log {path}/access.log; {temporary}\
         server {{ listen 127.0.0.1:{port}; server_name {HOST}; {include} location / {{ return 404; }} }} }}\n"
    );
    std::fs::write(folder.file("nginx.conf"), config).unwrap();
    let mut command = Command::new("/usr/sbin/nginx");
    command.args(["-p", folder.path().to_str().unwrap(), "-e", "error.log", "-c", "nginx.conf"]);
    Process::start(&mut command, folder.file("nginx-output.log"))
}

fn start_caddy(folder: &Folder, port: u16, snippet: &str) -> Process {
    std::fs::write(folder.file("invited.caddy"), snippet).unwrap();
    let lines = commands(snippet);
    let import = &lines[0];
    let global: Vec<&str> =
        lines[1..].iter().map(String::as_str).take_while(|line| !line.starts_with("systemctl")).collect();
    let global = global.join("\n").replacen('{', "{\nadmin off\nauto_https off", 1);
    let config = format!(
        "{global}\nhttp://:{port} {{\nlog {{\noutput file {}\n}}\n{import}\nrespond 404\n}}\n",
        folder.file("access.log").display()
    );
    std::fs::write(folder.file("Caddyfile"), config).unwrap();
    let mut command = Command::new("/usr/bin/caddy");
    command.args(["run", "--config", "Caddyfile", "--adapter", "caddyfile"]);
    command.current_dir(folder.path()).env("HOME", folder.path());
    command.env("XDG_DATA_HOME", folder.path()).env("XDG_CONFIG_HOME", folder.path());
    Process::start(&mut command, folder.file("output.log"))
}

fn start_apache(folder: &Folder, port: u16, snippet: &str) -> Process {
    std::fs::write(folder.file("invited.conf"), snippet).unwrap();
    let lines = commands(snippet);
    let (include, log) = (&lines[0], lines[1].replace("${APACHE_LOG_DIR}", folder.path().to_str().unwrap()));
    assert!(lines[2].starts_with("a2enmod proxy_http setenvif"), "{lines:?}");
    let modules: String = ["mpm_event", "authz_core", "proxy", "proxy_http", "setenvif"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .concat();
    let user = if is_root() { "User www-data\nGroup www-data\n" } else { "" };
    let config = format!(
        "{modules}{user}ServerName {HOST}\nListen 127.0.0.1:{port}\nPidFile apache.pid\nDefaultRuntimeDir .\n\
         ErrorLog error.log\nLogLevel trace1\nLogFormat \"%r %{{Referer}}i\" combined\n\
         <VirtualHost *:{port}>\nServerName {HOST}\n{log}\n{include}\n</VirtualHost>\n"
    );
    std::fs::write(folder.file("apache2.conf"), config).unwrap();
    let mut command = Command::new("/usr/sbin/apache2");
    command.arg("-d").arg(folder.path()).args(["-f", "apache2.conf", "-DFOREGROUND"]);
    Process::start(&mut command, folder.file("output.log"))
}

#[test]
fn prosody_takes_the_file_beside_its_own_configuration() {
    for release in [Release::OfThisMachine, Release::OfSid] {
        release.run(|release| {
            let mut site = Site::new(release);
            site.in_file = true;
            let key = create_key(&site.db(), HOST);
            let server = Server::start(&site.db());
            let prosody = Prosody::start(&site);
            let token = make_invite(&server, &key);
            prosody.make_account(&token, "ada");
            assert_eq!(state(&site, &token), "used");
        });
    }
}

#[test]
fn systemd_takes_the_units_and_finds_them_closed_enough() {
    if !available("systemd", Path::new("/usr/bin/systemd-analyze").exists()) {
        return;
    }
    let folder = Folder::new();
    let analyze = |args: &[&str]| {
        let output = Command::new("systemd-analyze").args(args).current_dir(folder.path()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    };
    for db in ["/var/lib/invited/invited.sqlite", "/srv/in vi'ted \"%h\" $HOME \\x/in vited.sqlite"] {
        let unit = done(Path::new(db), &["setup", "systemd", HOST]);
        std::fs::write(folder.file("invited.service"), &unit).unwrap();
        let socket = second_file(&folder.file("invited.service"));
        assert!(socket.contains("\nListenStream=127.0.0.1:8642\n"), "{socket}");
        std::fs::write(folder.file("invited.socket"), socket).unwrap();
        let (good, text) = analyze(&["verify", "--man=no", "./invited.service", "./invited.socket"]);
        // Other units of this machine are none of our business.
        let ours: Vec<&str> = text.lines().filter(|line| line.contains("invited")).collect();
        assert!(good && ours.is_empty(), "{text}");
        let (good, text) =
            analyze(&["security", "--offline=true", "--threshold=20", "--no-pager", "./invited.service"]);
        let score = text.split("exposure level for invited.service: ").nth(1).and_then(|rest| rest.split(' ').next());
        let score: f64 = score.and_then(|score| score.parse().ok()).unwrap_or_else(|| panic!("no score: {text}"));
        println!("systemd-analyze security: {score}");
        assert!(good && score < 2.0, "{text}");
    }
}

/// No systemd runs where these tests do; so this looks at what the server asks of the kernel, as the unit's user would.
#[test]
fn systemd_leaves_the_server_what_it_needs() {
    let found = ["systemd-analyze", "strace"].iter().all(|name| Path::new("/usr/bin").join(name).exists());
    if !available("systemd", found) || !available("root", is_root()) {
        return;
    }
    let home = Home::new("invited.sqlite");
    let key = home.done(&["create", HOST]).trim_end().to_owned();
    let trace = home.folder.file("trace");
    let mut command = home.as_user(Path::new("strace"));
    command.args(["-f", "-o"]).arg(&trace).arg(&home.program).args(["serve", "--listen", "127.0.0.1:0", "--db"]);
    let mut server = Server::spawn(command.arg(&home.db).env("RUNTIME_DIRECTORY", home.folder.path()));
    let token = server.get(&format!("/invites_api?key={key}")).token();
    assert_eq!(server.get(&format!("/invite?{token}")).status, 200);
    // A name is asked for, and a connection made, in vain.
    home.done(&["set", HOST, "xmpp", "localhost:1"]);
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let body = format!("token={token}&user=ana&password=correct-horse-battery");
    assert_eq!(server.send("POST", "/register", &form, body.as_bytes()).status, 503);
    // What strace has started is its only child, and it ends with it.
    shell(&format!("kill -TERM $(cat /proc/{id}/task/{id}/children)", id = server.id()));
    server.wait();
    let trace = std::fs::read_to_string(&trace).unwrap();

    let unit = home.done(&["setup", "systemd", HOST]);
    assert!(unit.contains("\nSystemCallFilter=@system-service\nSystemCallFilter=~@privileged @resources\n"));
    let landlock = "landlock_create_ruleset landlock_add_rule landlock_restrict_self";
    assert!(unit.contains(&format!("\nSystemCallFilter={landlock}\n")));
    let output = Command::new("systemd-analyze").args(["syscall-filter", "--no-pager"]).output().unwrap();
    let sets = String::from_utf8(output.stdout).unwrap();
    let [mut allowed, privileged, resources] =
        ["@system-service", "@privileged", "@resources"].map(|name| calls_of(name, &sets));
    allowed.retain(|call| !privileged.contains(call) && !resources.contains(call));
    assert!(allowed.len() > 100);
    allowed.extend(landlock.split(' ').map(str::to_owned));
    for line in trace.lines() {
        let call = line.split_whitespace().nth(1).unwrap_or_default();
        let Some((call, _)) = call.split_once('(') else { continue };
        assert!(allowed.iter().any(|name| name == call), "{call} is not allowed: {line}");
        assert!(!line.contains("PROT_WRITE|PROT_EXEC"), "{line}");
        let families = ["(AF_UNIX, ", "(AF_INET, ", "(AF_INET6, "];
        assert!(call != "socket" || families.iter().any(|family| line.contains(family)), "{line}");
    }
    assert!(trace.contains(" socket(AF_INET, ") && trace.contains(" connect("));
}

/// The system calls of one of systemd's sets, and of those that are in it.
fn calls_of(name: &str, sets: &str) -> Vec<String> {
    let lines = sets.lines().skip_while(|line| line.trim_end() != name).skip(1);
    let lines = lines.take_while(|line| line.starts_with(' ')).map(str::trim).filter(|line| !line.starts_with('#'));
    lines.flat_map(|line| if line.starts_with('@') { calls_of(line, sets) } else { vec![line.to_owned()] }).collect()
}

#[test]
fn runit_starts_it_anew_and_keeps_its_log() {
    if !available("runit", Path::new("/usr/bin/runsvdir").exists()) || !available("root", is_root()) {
        return;
    }
    let home = Home::new("in vi'ted $x.sqlite");
    let addr = free_port();
    let snippet = home.done(&["setup", "runit", HOST, "--listen", &addr.to_string()]);
    let [service, log, services] = ["sv", "log", "service"].map(|name| home.folder.file(name));
    std::fs::create_dir_all(&service).unwrap();
    std::fs::create_dir_all(&services).unwrap();
    let at_home = |text: &str| {
        let text = text.replace("/etc/sv/invited", service.to_str().unwrap());
        let text = text.replace("/var/log/invited", log.to_str().unwrap());
        text.replace("/etc/service/", services.join("invited").to_str().unwrap())
    };
    std::fs::write(service.join("run"), at_home(&snippet)).unwrap();
    for command in commands(&snippet) {
        shell(&at_home(&command));
    }
    let runit = Process::start_with(
        Command::new("runsvdir").arg(&services),
        home.folder.file("runsvdir.log"),
        // It ends all services with SIGHUP.
        "HUP",
    );
    let current = || std::fs::read_to_string(log.join("current")).unwrap_or_default();
    wait_until("the log says that it listens", || current().contains("listening on http://"));
    assert_eq!(get(addr, "/").status, 200);
    wait_until("the log has the request", || current().contains("method=GET path=/ status=200"));
    let pid = || std::fs::read_to_string(service.join("supervise/pid")).unwrap_or_default().trim().to_owned();
    let first = pid();
    assert_eq!(user_of(&first), NOBODY);
    shell(&format!("kill -9 {first}"));
    wait_until("another process listens", || pid() != first && TcpStream::connect(addr).is_ok());
    assert_eq!(get(addr, "/").status, 200);
    // runsvdir does not wait for its children, which could write into the test's folder while it goes.
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children", id = runit.child.id())).unwrap();
    assert!(!children.is_empty());
    drop(runit);
    let runs = |pid: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
    };
    wait_until("runit's services have ended", || !children.split_whitespace().any(runs));
}

#[test]
fn openrc_starts_it_anew_and_stops_it() {
    let found = Path::new("/sbin/openrc-run").exists();
    if !available("openrc", found) || !available("root", is_root()) || !has_curl() {
        return;
    }
    let home = Home::new("in vi'ted $x.sqlite");
    let addr = free_port();
    let snippet = home.done(&["setup", "openrc", HOST, "--listen", &addr.to_string()]);
    let [script, log] = ["invited-test", "invited.log"].map(|name| home.folder.file(name));
    std::fs::write(&script, snippet.replace("/var/log/invited.log", log.to_str().unwrap())).unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    assert!(Command::new("sh").arg("-n").arg(&script).status().unwrap().success());
    // OpenRC as in a machine that it has booted, though in namespaces of its own, so that this one does not see it, and all ends
    // with the first process.
    let program = format!(
        "mount -t tmpfs tmpfs /run && mkdir /run/openrc && cd /run/openrc
         mkdir starting started stopping inactive wasinactive failed hotplugged scheduled exclusive options daemons
         echo default > softlevel
         s={script}
         rc() {{ \"$s\" --nodeps --quiet \"$@\"; }}
         wait_for() {{ for i in $(seq 300); do \"$@\" && return; sleep 0.1; done; echo \"never: $*\"; exit 1; }}
         listens() {{ curl -s -o {page} http://{addr}/; }}
         pid() {{ pidof {program} | tr ' ' '\\n' | sort -n | head -1; }}
         rc start || exit 1
         wait_for listens
         first=$(pid)
         echo \"user $(stat -c %U /proc/$first)\"
         grep '^Umask' /proc/$first/status
         kill -9 $first
         other() {{ now=$(pid); [ -n \"$now\" ] && [ \"$now\" != \"$first\" ]; }}
         wait_for other
         wait_for listens
         rc status && echo started
         rc stop || exit 1
         wait_for sh -c '! pidof {program} > /dev/null'
         echo stopped",
        script = script.display(),
        page = home.folder.file("page").display(),
        program = home.program.display(),
    );
    let mut command = Command::new("timeout");
    command.args(["60", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &program]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("started") && text.contains("stopped"), "{text}");
    assert!(text.contains("user nobody\n") && text.contains("0007"), "{text}");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.matches("listening on http://").count() == 2 && log.contains("path=/ status=200"), "{log}");
}

#[test]
fn inetd_starts_it_for_each_connection() {
    if !available("inetd", Path::new("/usr/sbin/inetd").exists()) || !available("root", is_root()) {
        return;
    }
    let home = Home::new("invited.sqlite");
    let (addr, _inetd) = start_on_free_port(|port| {
        let snippet = home.done(&["setup", "inetd", HOST, "--listen", &format!("127.0.0.1:{port}")]);
        std::fs::write(home.folder.file("inetd.conf"), snippet).unwrap();
        let mut command = Command::new("/usr/sbin/inetd");
        Process::start(command.arg("-i").arg(home.folder.file("inetd.conf")), home.folder.file("inetd.log"))
    });
    served_by_inetd(&home, addr);
}

#[test]
fn xinetd_starts_it_for_each_connection() {
    let Some(program) = program_of("INVITED_TEST_XINETD", "/usr/sbin/xinetd") else {
        available("xinetd", false);
        return;
    };
    if !available("root", is_root()) {
        return;
    }
    let home = Home::new("invited.sqlite");
    let (addr, _xinetd) = start_on_free_port(|port| {
        let snippet = home.done(&["setup", "inetd", HOST, "--listen", &format!("127.0.0.1:{port}")]);
        std::fs::write(home.folder.file("inetd.conf"), snippet).unwrap();
        std::fs::write(home.folder.file("xinetd.conf"), second_file(&home.folder.file("inetd.conf"))).unwrap();
        let mut command = Command::new(&program);
        command.args(["-dontfork", "-f"]).arg(home.folder.file("xinetd.conf"));
        command.arg("-pidfile").arg(home.folder.file("xinetd.pid"));
        Process::start(&mut command, home.folder.file("xinetd.log"))
    });
    served_by_inetd(&home, addr);
}

fn served_by_inetd(home: &Home, addr: SocketAddr) {
    let key = home.done(&["create", HOST]);
    let key = key.trim_end();
    let token = get(addr, &format!("/invites_api?key={key}")).token();
    let page = get(addr, &format!("/invite?{token}"));
    assert!(page.status == 200 && page.body.contains("</html>"), "{page:?}");
    assert_eq!(get(addr, "/invite?unknown").status, 404);
}

#[test]
fn cron_takes_the_lines_and_their_commands_run() {
    let home = Home::new("in vi'ted %h $x.sqlite");
    let snippet = home.done(&["setup", "cron", HOST]);
    let jobs = cron_jobs(&snippet);
    assert_eq!(jobs.len(), 3);
    for (times, user, _) in &jobs {
        let good = |field: &String| field == "*" || field.bytes().all(|b| b.is_ascii_digit());
        assert!(times.iter().all(good), "{times:?}");
        assert_eq!(*user, home.user_name());
    }
    let prune = jobs.iter().find(|(_, _, command)| command.contains(" prune ")).unwrap();
    let output = home.shell(&prune.2);
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");

    // Cron's own opinion: the same lines as they are in the table of a user, without the user's name.
    if available("cron", Path::new("/usr/bin/crontab").exists()) && available("root", is_root()) {
        let table: String =
            snippet.lines().map(|line| line.replacen(&format!(" {} ", home.user_name()), " ", 1) + "\n").collect();
        std::fs::write(home.folder.file("crontab"), table).unwrap();
        let install = format!(
            "mount -t tmpfs tmpfs /var/spool/cron && mkdir -p /var/spool/cron/crontabs && crontab {} && crontab -l",
            home.folder.file("crontab").display()
        );
        let output = Command::new("unshare").args(["--mount", "sh", "-c", &install]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("17 * * * * "), "{output:?}");
    }
}

#[test]
fn cron_makes_a_copy_and_asks_the_doctor() {
    let home = Home::new("in vi'ted %h $x.sqlite");
    let jobs = cron_jobs(&home.done(&["setup", "cron", HOST]));
    let backup = jobs.iter().find(|(_, _, command)| command.contains(" backup ")).unwrap();
    // The second one takes the place of the first.
    for _ in 0..2 {
        let output = home.shell(&backup.2);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let copies = (1..=7).filter(|day| home.folder.file(&format!("backup-{day}.sqlite")).exists());
        assert_eq!(copies.count(), 1);
    }
    let doctor = jobs.iter().find(|(_, _, command)| command.contains(" doctor ")).unwrap();
    // There is no XMPP server here, which is worth a mail.
    let output = home.shell(&doctor.2);
    assert!(output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

/// The lines of a table of cron's: the five times, the user, and the command as cron hands it to the shell.
fn cron_jobs(snippet: &str) -> Vec<(Vec<String>, String, String)> {
    let lines = snippet.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.splitn(7, ' ').collect();
            // A bare one ends the command.
            assert!(!fields[6].replace("\\%", "").contains('%'), "{line}");
            let times = fields[..5].iter().map(|field| (*field).to_owned()).collect();
            (times, fields[5].to_owned(), fields[6].replace("\\%", "%"))
        })
        .collect()
}

#[test]
fn fail2ban_finds_who_guesses_and_nobody_else() {
    if !available("fail2ban", Path::new("/usr/bin/fail2ban-regex").exists()) {
        return;
    }
    let folder = Folder::new();
    let key = create_key(&folder.db(), HOST);
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--trust-proxy", "--listen", "127.0.0.1:0", "--db"]).arg(folder.db());
    let server = Server::spawn(command.env("TMPDIR", folder.path()));
    let id = key.split_once('/').unwrap().0;
    let forwarded = [("X-Forwarded-For", "192.0.2.1, 198.51.100.7")];
    let guesses = [
        format!("/invites_api?key=unknown1/{}", "a".repeat(32)),
        format!("/invites_api?key={id}/{}", "a".repeat(32)),
        "/invite?no-such-token".to_owned(),
        "/register?t=no-such-token".to_owned(),
    ];
    for target in &guesses {
        assert!(matches!(server.request("GET", target, &forwarded).status, 403 | 404), "{target}");
    }
    for target in ["/", "/invites_api", "/nothing", "/robots.txt"] {
        server.request("GET", target, &forwarded);
    }
    let token = server.get(&format!("/invites_api?key={key}")).token();
    server.get(&format!("/invite?{token}"));
    server.request("GET", "/invite/x\"reason=token-unknown?peer=192.0.2.1", &forwarded);
    let log = server.log_with("path=/invite status=200");
    std::fs::write(folder.file("plain.log"), &log).unwrap();
    for (name, before) in [("syslog.log", "Nov  2 18:30:00 server "), ("journal.log", "server ")] {
        let line = |line: &str| format!("{before}invited[4711]: {line}\n");
        std::fs::write(folder.file(name), log.lines().map(line).collect::<String>()).unwrap();
    }

    let snippet = done(&folder.db(), &["setup", "fail2ban", HOST]);
    let config = folder.file("fail2ban");
    assert!(Command::new("cp").args(["-r", "/etc/fail2ban"]).arg(&config).status().unwrap().success());
    let at_home = |text: &str| text.replace("/etc/fail2ban", config.to_str().unwrap());
    std::fs::write(config.join("filter.d/invited.conf"), at_home(&snippet)).unwrap();
    let lines = commands(&snippet);
    shell(&at_home(lines.iter().find(|line| line.starts_with("sed ")).unwrap()));
    for name in ["plain.log", "syslog.log", "journal.log"] {
        let output = Command::new("fail2ban-regex")
            .args(["--print-all-matched", "--verbose"])
            .args([folder.file(name), config.join("filter.d/invited.conf")])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!(" {} matched,", guesses.len())), "{name}: {text}\n{log}");
        let dates = format!("[{}] \\btime=Year-Month-DayT24hour", log.lines().count() - 1);
        assert!(text.contains(&dates), "{name}: {text}");
        assert_eq!(text.matches("    198.51.100.7  ").count(), guesses.len(), "{name}: {text}\n{log}");
    }
    let output = Command::new("fail2ban-client").arg("-c").arg(&config).arg("-d").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("['add', 'invited', 'systemd']"), "{output:?}");
    assert!(text.contains("_SYSTEMD_UNIT=invited.service"), "{text}");
}

#[test]
fn what_a_program_cannot_be_told_is_refused() {
    let folder = Folder::new();
    for (name, db) in [
        ("inetd", "in vited.sqlite"),
        ("inetd", "in#vited.sqlite"),
        ("systemd", "in\nvited.sqlite"),
        ("prosody", "in\u{1}vited.sqlite"),
        ("cron", "in\nvited.sqlite"),
        ("runit", "in\nvited.sqlite"),
    ] {
        let stderr = fails(&folder.file(db), 1, &["setup", name, HOST]);
        assert!(stderr.contains(&format!("{name} can't be told")), "{stderr}");
    }
    for listen in ["127.0.0.1:0", "bogus"] {
        fails(&folder.db(), 2, &["setup", "nginx", HOST, "--listen", listen]);
    }
    let stderr = fails(&folder.db(), 2, &["setup", "inetd", HOST, "--listen", "unix:/run/x"]);
    assert!(stderr.contains("ADDR:PORT"), "{stderr}");
    let stderr = fails(&folder.db(), 1, &["setup", "nginx", HOST, "--listen", "unix:/run/x; root /"]);
    assert!(stderr.contains("path of the socket"), "{stderr}");
    let stderr = fails(&folder.db(), 2, &["setup", "bogus", HOST]);
    for name in NAMES {
        assert!(stderr.contains(name), "{stderr}");
    }
    create_key(&folder.db(), HOST);
    done(&folder.db(), &["set", HOST, "url", "https://example.com/a$b;c"]);
    let stderr = fails(&folder.db(), 1, &["setup", "nginx", HOST]);
    assert!(stderr.contains("'$' can't be in a path"), "{stderr}");
}

const NAMES: [&str; 11] =
    ["prosody", "ejabberd", "systemd", "openrc", "runit", "inetd", "nginx", "caddy", "apache", "cron", "fail2ban"];

#[test]
fn a_missing_database_is_said_on_stderr_and_an_old_one_gives_its_settings() {
    let folder = Folder::new();
    let missing = folder.file("no/such.sqlite");
    for name in NAMES {
        let output = run(&missing, &["setup", name, HOST]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && stderr.contains("there is no database"), "{name}: {stderr}");
        assert!(!missing.exists());
        // All of it can be pasted: what is not for the program is behind its sign for comments.
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with('#') || text.starts_with("-- "), "{text}");
        assert!(!text.contains("{user}") && !text.contains("{db}"), "{text}");
    }
    let unit = done(&missing, &["setup", "systemd", HOST]);
    assert!(
        unit.contains("\nUser=prosody\n") && unit.contains("After=network-online.target prosody.service\n"),
        "{unit}"
    );

    create_key(&folder.db(), "bücher.example");
    done(&folder.db(), &["set", "bücher.example", "server", "ejabberd"]);
    let unit = done(&folder.db(), &["setup", "systemd", "bücher.example"]);
    assert!(unit.contains("After=network-online.target ejabberd.service\n"), "{unit}");
    let lines = done(&folder.db(), &["setup", "ejabberd", "xn--bcher-kva.example"]);
    assert!(lines.contains("\n  \"bücher.example\":\n"), "{lines}");
    assert!(lines.contains("\"https://xn--bcher-kva.example/invite?{{ invite.token }}\"\n"), "{lines}");
    let output = run(&folder.db(), &["setup", "prosody", "bücher.example"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("is set up for ejabberd"), "{stderr}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("\nVirtualHost \"bücher.example\"\n"));
}

#[test]
fn a_relative_database_is_printed_from_the_root_on() {
    let folder = Folder::new();
    let output = Command::new(PROGRAM)
        .args(["setup", "runit", HOST, "--db", "x/../invited.sqlite"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("--db {}", folder.path().canonicalize().unwrap().display())), "{text}");
}

/// The user that runs `invited` where the tests are root.
const NOBODY: u32 = 65534;

/// A folder and a database of another user's, with a copy of the program that this user can reach.
struct Home {
    folder: Folder,
    program: PathBuf,
    db: PathBuf,
}

impl Home {
    fn new(db: &str) -> Home {
        let folder = Folder::new();
        let (program, db) = (folder.file("invited"), folder.file(db));
        // Another process makes it: a descriptor that is open for writing could be inherited by the child of another test,
        // and Linux runs no file that is being written.
        assert!(Command::new("cp").arg(PROGRAM).arg(&program).status().unwrap().success());
        create_key(&db, HOST);
        if is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            chown(&db, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        Home { folder, program, db }
    }

    fn user_name(&self) -> String {
        let output = self.as_user(Path::new("id")).arg("-un").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Runs the copy as its user, which must succeed.
    fn done(&self, args: &[&str]) -> String {
        let output = self.as_user(&self.program).args(args).env("INVITED_DB", &self.db).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a shell's line as the user.
    fn shell(&self, line: &str) -> Output {
        self.as_user(Path::new("sh")).args(["-c", line]).output().unwrap()
    }

    fn as_user(&self, program: &Path) -> Command {
        if !is_root() {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program);
        command
    }
}

/// A program in the foreground, ended when it is dropped.
struct Process {
    child: Child,
    log: PathBuf,
    signal: &'static str,
}

impl Process {
    fn start(command: &mut Command, log: PathBuf) -> Process {
        Process::start_with(command, log, "TERM")
    }

    fn start_with(command: &mut Command, log: PathBuf, signal: &'static str) -> Process {
        let output = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Process { child: command.spawn().unwrap(), log, signal }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = Command::new("kill").args([&format!("-{}", self.signal), &self.child.id().to_string()]).status();
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// Starts something that listens on a port that it is told, and waits until it does.
fn start_on_free_port(start: impl Fn(u16) -> Process) -> (SocketAddr, Process) {
    for _ in 0..3 {
        let addr = free_port();
        let mut process = start(addr.port());
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if TcpStream::connect(addr).is_ok() {
                return (addr, process);
            }
            if process.child.try_wait().unwrap().is_some() {
                eprintln!("{}", std::fs::read_to_string(&process.log).unwrap_or_default());
                break;
            }
            sleep(Duration::from_millis(20));
        }
    }
    panic!("it does not listen");
}

fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn get(addr: SocketAddr, target: &str) -> Reply {
    exchange(addr, format!("GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes())
}

/// The lines of the comments that are to be pasted too: those that are indented.
fn commands(snippet: &str) -> Vec<String> {
    let lines = snippet.lines().filter_map(|line| line.strip_prefix("#   "));
    lines.map(str::to_owned).collect()
}

/// The other file that a text holds in its comments.
fn second_file(file: &Path) -> String {
    let output = Command::new("sed").args(["-n", "s/^#: //p"]).arg(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn shell(line: &str) {
    assert!(Command::new("sh").args(["-c", line]).status().unwrap().success(), "{line}");
}

fn program_of(variable: &str, usual: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(|| PathBuf::from(usual), PathBuf::from);
    path.exists().then_some(path)
}

fn user_of(pid: &str) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{pid}")).unwrap())
}

fn has_curl() -> bool {
    available("curl", Path::new("/usr/bin/curl").exists())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
