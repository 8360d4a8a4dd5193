#!/usr/bin/env python3
"""Gateway: tokens that a worker passes on per CPU-second, beside nginx's echo module.

    t/bench/gateway.py BUILD [--streams 1000] [--tokens 200] [--delay 30] [--rounds 3]

One nginx with one worker serves one after the other:

    echo           `echo' and `echo_flush' of the very bytes that the module sends for a
                   token; it says all of a stream before it turns to the next stream
    echo in turns  the same with `echo_sleep' after each: a token of each stream in turns
    glm            the module, one token a step and stream: one event and one send each
    glm, 8 ...     the module, 8 tokens a step

The engine is the scripted one, which emits steps.  CPU time is the worker's utime and
stime, sends are its write calls (syscw of /proc/PID/io).  The best round of each kind
counts.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ECHO = "/usr/lib/nginx/modules/ngx_http_echo_module.so"
URI = "/v1/completions"
WORD = " word"       # a token's text


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """nginx and the engine in a directory of their own."""

    def __init__(self, build):
        self.build = os.path.abspath(build)
        self.dir = tempfile.mkdtemp(prefix="glmb")
        self.port = free_port()
        self.procs = []

    def start(self, cmd):
        err = open(self.dir + "/err", "ab")
        p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=err, stderr=err)
        self.procs.append(p)
        return p

    def stop(self):
        for p in reversed(self.procs):
            p.terminate()
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        self.procs = []

    def start_engine(self):
        self.start([self.build + "/t/fake_engine", "--socket", self.dir + "/e.sock",
                    "--max-seq", "100000"])
        until(lambda: os.path.exists(self.dir + "/e.sock"), "no engine")

    def start_nginx(self, locations=""):
        user = "user root;" if os.getuid() == 0 else ""
        with open(self.dir + "/nginx.conf", "w") as f:
            f.write(f"""{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile 8192;
error_log {self.dir}/error.log warn;
pid {self.dir}/nginx.pid;
load_module {self.build}/ngx_http_glm_module.so;
load_module {ECHO};
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {self.dir}/body;
    proxy_temp_path {self.dir}/proxy;
    fastcgi_temp_path {self.dir}/fastcgi;
    uwsgi_temp_path {self.dir}/uwsgi;
    scgi_temp_path {self.dir}/scgi;
    server {{
        listen 127.0.0.1:{self.port} backlog=4096;
        location / {{ glm_pass unix:{self.dir}/e.sock; }}
        location = /warm {{ return 204; }}
        {locations}
    }}
}}
""")
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        p = self.start([nginx, "-p", self.dir, "-c", self.dir + "/nginx.conf"])
        until(lambda: self.healthy(), "nginx does not start")
        with open(f"/proc/{p.pid}/task/{p.pid}/children") as f:
            self.worker = int(f.read().split()[0])

    def healthy(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as s:
                s.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return b" 200 " in s.recv(100)
        except OSError:
            return False

    def cpu(self):
        with open(f"/proc/{self.worker}/stat") as f:
            v = f.read().rsplit(")", 1)[1].split()
        return (int(v[11]) + int(v[12])) / os.sysconf("SC_CLK_TCK")

    def sends(self):
        with open(f"/proc/{self.worker}/io") as f:
            return int(re.search(r"syscw: (\d+)", f.read()).group(1))


def until(done, what, seconds=10):
    end = time.time() + seconds
    while not done():
        if time.time() > end:
            raise SystemExit(what)
        time.sleep(0.02)


def completion(tokens, delay, burst=1):
    body = ('{"prompt":"fake: tokens=%d delay=%d burst=%d text=_word","max_tokens":%d,'
            '"stream":true}' % (tokens, delay, burst, tokens)).encode()
    return (b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
            % (URI.encode(), len(body))) + body


def one_event(server):
    """The bytes of a token's event."""
    with socket.create_connection(("127.0.0.1", server.port), 5) as s:
        s.sendall(completion(2, 20))
        got = b""
        while b"[DONE]" not in got:
            got += s.recv(65536)
    return re.search(rb"data: .*?\n\n", got).group(0).decode()


def run(server, request, streams, want):
    """Sends the request on so many connections and reads all; (CPU seconds, sends)."""
    p = subprocess.Popen([server.build + "/bench/gateway_client", str(server.port), str(streams),
                          WORD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    server.procs.append(p)
    if p.stdout.readline() != b"open\n":
        raise SystemExit("the client does not connect")
    time.sleep(0.2)
    cpu, sends = server.cpu(), server.sends()
    found = p.communicate(b"go\n" + request, 120)[0]
    time.sleep(0.05)
    result = server.cpu() - cpu, server.sends() - sends
    server.procs.remove(p)
    if p.returncode or int(found) != want:
        raise SystemExit("%s of %d tokens came" % (found.decode().strip() or "none", want))
    return result


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("--streams", type=int, default=1000)
    p.add_argument("--tokens", type=int, default=200)
    p.add_argument("--delay", type=int, default=30, help="ms a step")
    p.add_argument("--rounds", type=int, default=3)
    o = p.parse_args()
    if not os.path.exists(ECHO):
        raise SystemExit("libnginx-mod-http-echo is not installed")

    server = Server(o.build)
    try:
        server.start_engine()
        server.start_nginx()
        event = one_event(server)
        server.procs[-1].terminate()
        server.procs.pop().wait()
        # echo ends its line itself; "$" does not occur in an event
        line = "echo '%s';\necho_flush;\n" % event[:-1]
        turn = line + "echo_sleep %.3f;\n" % (o.delay / 1000)
        server.start_nginx("location = /echo { default_type text/event-stream;\n%s}\n"
                           "location = /turns { default_type text/event-stream;\n%s}\n"
                           % (line * o.tokens, turn * o.tokens))
        return measure(server, o, event)
    finally:
        server.stop()
        shutil.rmtree(server.dir)


def measure(server, o, event):
    total = o.streams * o.tokens
    kinds = {
        "echo": b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n",
        "echo in turns": b"GET /turns HTTP/1.1\r\nHost: a\r\n\r\n",
        "glm": completion(o.tokens, o.delay),
        "glm, 8 a wake-up": completion(o.tokens, o.delay * 4, 8),
    }
    best = {}
    print("%d streams of %d tokens, an event of %d bytes each; best of %d rounds"
          % (o.streams, o.tokens, len(event), o.rounds))
    for _ in range(o.rounds):
        for name, request in kinds.items():
            cpu, sends = run(server, request, o.streams, total)
            rate = total / cpu
            print("  %-18s %8.0f tokens/CPU s, %7d sends (%.3f a token)"
                  % (name, rate, sends, sends / total), flush=True)
            if name == "glm" and sends < 0.98 * best["echo"][1]:
                print("  (the worker was late: steps ran together; round does not count)")
                continue
            if name not in best or rate > best[name][0]:
                best[name] = rate, sends
    if "glm" not in best:
        raise SystemExit("no valid round: give a longer --delay")
    for name, base, need in (("glm", "echo", 0.8), ("glm", "echo in turns", 0.8),
                             ("glm, 8 a wake-up", "echo", 2.0)):
        ratio = best[name][0] / best[base][0]
        print("%s / %s: %.2f, wanted %.1f%s"
              % (name, base, ratio, need, "" if ratio >= need else ": NOT REACHED"))
    print("sends of glm / sends of echo: %.3f" % (best["glm"][1] / best["echo"][1]))
    return 0


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
sys.exit(main())
