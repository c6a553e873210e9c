#!/usr/bin/env python3
"""A day in small: mixed load, restarts, stops and attacks on a real server, for some minutes.

    tests/peers/day.py target/release/invited MINUTES

Prints the resident memory, threads and open files of the server after each round, when it is idle, and ends with 1 unless they
stay flat and every invite that was answered is in the file with its row for Prosody, and nothing else is.
"""
import json, os, random, signal, socket, sqlite3, subprocess, sys, tempfile, threading, time

program, minutes = os.path.abspath(sys.argv[1]), float(sys.argv[2])
folder = tempfile.mkdtemp(prefix="invited-day-")
db = f"{folder}/invited.sqlite"
env = {**os.environ, "INVITED_DB": db, "TMPDIR": folder}
key = subprocess.run([program, "create", "example.com", "--allow", "account,contact,reset"], env=env, capture_output=True, text=True, check=True).stdout.strip()
subprocess.run([program, "set", "example.com", "xmpp", "127.0.0.1:1"], env=env, check=True)
# The listening socket is ours, so that a restart refuses nobody.
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
port = listener.getsockname()[1]
answered, failures, lock = set(), [], threading.Lock()


def start():
    script = f'export LISTEN_PID=$$ LISTEN_FDS=1; exec {program} serve --log-level error 3<&0 0</dev/null'
    return subprocess.Popen(["sh", "-c", script], env=env, stdin=listener.fileno(), stderr=open(f"{folder}/log", "a"))


def ask(request, body=b""):
    with socket.create_connection(("127.0.0.1", port), timeout=40) as s:
        s.sendall(request.encode() + body)
        data = b""
        while piece := s.recv(65536):
            data += piece
    return data.decode(errors="replace")


def load(stop, may_fail):
    while not stop.is_set():
        kind = random.choice(["account", "contact", "account-and-contact", "reset"])
        body = json.dumps({"kind": kind} | ({} if kind == "account" else {"username": "ana"})).encode()
        head = (f"POST /invites_api HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")
        try:
            answer = ask(head, body)
        except OSError as error:
            answer = str(error)
        status = answer[9:12]
        if status == "201":
            token = json.loads(answer.split("\r\n\r\n", 1)[1])["token"]
            with lock:
                answered.add(token)
            for target in [f"/invite?{token}", f"/register?t={token}", "/invite?unknown", "/nothing"]:
                try:
                    ask(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                except OSError as error:
                    if not may_fail():
                        failures.append(f"{target}: {error}")
        elif not may_fail():
            failures.append(answer[:200])
        time.sleep(0.02)


def attack():
    """What strangers do, once around."""
    open_ones = []
    for bytes_ in [b"", b"GET / HT", b"POST /invites_api HTTP/1.1\r\nHost: a\r\nContent-Length: 40000000000\r\n\r\n", b"\0" * 100,
                   b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 4000, b"A" * 100_000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                   b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 200] * 40:
        try:
            s = socket.create_connection(("127.0.0.1", port), timeout=5)
            s.sendall(bytes_)
            open_ones.append(s)
        except OSError:
            pass
    for s in open_ones:
        s.close()


def figures(pid):
    status = dict(line.split(":\t", 1) for line in open(f"/proc/{pid}/status") if ":\t" in line)
    return int(status["VmRSS"].split()[0]), int(status["Threads"]), len(os.listdir(f"/proc/{pid}/fd"))


child, rounds, uncertain = start(), [], False
end = time.time() + minutes * 60
while time.time() < end:
    stop = threading.Event()
    clients = [threading.Thread(target=load, args=(stop, lambda: uncertain)) for _ in range(4)]
    for client in clients:
        client.start()
    time.sleep(3)
    attack()
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(1)
    os.kill(child.pid, signal.SIGCONT)
    time.sleep(2)
    # A restart loses nobody; every fifth time it is killed, and then some go without an answer.
    uncertain = len(rounds) % 5 == 4
    os.kill(child.pid, signal.SIGKILL if uncertain else signal.SIGTERM)
    code = child.wait()
    if code != (-signal.SIGKILL if uncertain else 0):
        failures.append(f"exit code {code}")
    child = start()
    time.sleep(3)
    stop.set()
    for client in clients:
        client.join()
    uncertain = False
    # Without anybody: no connection, hence no thread of one.
    time.sleep(2)
    rounds.append(figures(child.pid))
    print(f"round {len(rounds)}: {len(answered)} invites, {rounds[-1][0]} kB, {rounds[-1][1]} threads, {rounds[-1][2]} files", flush=True)
# The last process goes on without a restart, so that growth would show.
before = figures(child.pid)
for _ in range(5):
    stop = threading.Event()
    clients = [threading.Thread(target=load, args=(stop, lambda: False)) for _ in range(4)]
    for client in clients:
        client.start()
    attack()
    time.sleep(5)
    stop.set()
    for client in clients:
        client.join()
time.sleep(2)
after = figures(child.pid)
print(f"one process under load and attacks: {before} -> {after} (kB, threads, files)")
os.kill(child.pid, signal.SIGTERM)
child.wait()
sql = sqlite3.connect(db)
stored = {row[0] for row in sql.execute("SELECT token FROM invited_invite")}
server = {row[0] for row in sql.execute("SELECT DISTINCT key FROM prosody WHERE store = 'invite_token'")}
whole = sql.execute("PRAGMA integrity_check").fetchone()[0]
lost = answered - stored
print(f"{len(answered)} answered, {len(stored)} stored, {len(lost)} lost, {len(stored ^ server)} not in both tables, integrity {whole}, "
      f"{len(failures)} failures")
for failure in failures[:5]:
    print("failure:", failure)
# A file more or less is one that is open for a moment.
flat = all(max(column) - min(column) <= 3 for column in list(zip(*rounds, before, after))[1:]) and after[0] < 40_000
if lost or stored ^ server or whole != "ok" or failures or not flat:
    sys.exit(f"wrong; see {folder}")
