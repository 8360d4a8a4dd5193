package GLM::Test;

# Runs nginx with the module, a real or a scripted engine, and talks to them.
# What it starts it stops; a file fails on any alert in nginx's log, on a
# sanitizer's line anywhere, and on a process that does not stop.
#
#     my $t = GLM::Test->new->fake->run->ready;
#     my $r = $t->post('/v1/completions', { prompt => 'fake: tokens=3 delay=10' });
#     $t->done;

use strict;
use warnings;
use Exporter 'import';
use Cwd ();
use Errno qw(EADDRINUSE);
use File::Basename ();
use File::Path ();
use File::Temp ();
use IO::Socket::INET;
use IO::Socket::UNIX;
use JSON::PP ();
use POSIX qw(WNOHANG);
use Socket qw(SOCK_SEQPACKET);
use Test::More ();
use Time::HiRes qw(time sleep);
use GLM::Guard;
use GLM::HTTP;

our @EXPORT = qw(wait_for is_once json to_json check_error check_utf8 data_events median
    TRUE FALSE);
our @EXPORT_OK = qw(gone);

use constant { TRUE => JSON::PP::true, FALSE => JSON::PP::false };

binmode $_, ':utf8'
    for map { Test::More->builder->$_ } qw(output failure_output todo_output);

my $JSON = JSON::PP->new->utf8->canonical->allow_nonref;
my @LIVE;
my $TREE = Cwd::realpath(File::Basename::dirname(__FILE__) . '/../../..');

# ---- values ----

sub json {
    my ($text) = @_;
    my $v = eval { $JSON->decode($text) };
    Test::More::diag("not JSON: $@" . substr($text // 'undef', 0, 400)) if $@;
    return $v;
}

sub to_json { return $JSON->encode($_[0]) }

sub median {
    my @s = sort { $a <=> $b } @_;
    return $s[@s / 2];
}

# Slow builds (sanitizers) get more time, never other results.
sub patience { return $ENV{GLM_SANITIZED} ? 4 : 1 }

# Calls $done until it says true; returns what it said.  $seconds are what a good machine
# needs: a wait gives up after a minute only, as a busy one takes its time and nothing but
# a failure waits so long.  Under a second they are meant.
sub wait_for(&;$) {
    my ($done, $seconds) = @_;
    $seconds = 60 if !defined $seconds || ($seconds >= 1 && $seconds < 60);
    my $end = time + $seconds * patience();
    my $r;
    until ($r = $done->()) {
        return $r if time > $end;
        sleep 0.01;
    }
    return $r;
}

# Chunks as an idle machine makes them: a busy one joins tokens, so that what $get says is
# looked at until it is so.
sub is_once(&$$) {
    my ($get, $want, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $got;
    wait_for { to_json($got = $get->()) eq to_json($want) };
    return Test::More::is_deeply($got, $want, $name) || Test::More::diag(to_json($got));
}

# A process has ended, though its parent may not have asked yet.
sub gone {
    my ($pid) = @_;
    open my $f, '<', "/proc/$pid/stat" or return 1;
    return (<$f> // '') !~ /\) [^ZX]/;
}

sub check_utf8 {
    my ($bytes) = @_;
    my $copy = $bytes;
    return utf8::decode($copy) || $bytes !~ /[\x80-\xff]/;
}

# The decoded chunks of a stream; dies on anything that is no event.  The last
# must be [DONE].
sub data_events {
    my @events = @_;
    my @data = map { $_->{data} } grep { defined $_->{data} } @events;
    die 'bad event: ' . $_->{bad} . "\n" for grep { defined $_->{bad} } @events;
    my $last = pop @data // 'nothing';
    die "stream ends with: $last\n" if $last ne '[DONE]';
    return map { json($_) } @data;
}

# An answer is an error of OpenAI's shape.  %o: type, code, param (undef: null),
# like => regex on the message.
sub check_error {
    my ($r, $status, $name, %o) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $fault;
    if (!$r) {
        $fault = 'no answer';
    } elsif ($r->{status} != $status) {
        $fault = "status $r->{status}, body " . substr $r->{body}, 0, 300;
    } elsif (($r->{headers}{'content-type'} // '') !~ m{^application/json(; ?charset=utf-8)?$}i) {
        $fault = 'content type ' . ($r->{headers}{'content-type'} // 'none');
    } else {
        $fault = error_fault($r->{body}, %o);
        $fault //= 'no x-request-id' unless $r->{headers}{'x-request-id'};
    }
    return Test::More::ok(!$fault, $name) || Test::More::diag("$name: $fault");
}

sub error_fault {
    my ($body, %o) = @_;
    my $e = eval { $JSON->decode($body) } or return 'not JSON: ' . substr $body, 0, 200;
    return 'no error object' unless ref $e eq 'HASH' && ref $e->{error} eq 'HASH';
    return 'keys of the answer: ' . join ' ', sort keys %$e if keys %$e != 1;
    $e = $e->{error};
    my $keys = join ' ', sort keys %$e;
    return "keys: $keys" if $keys ne 'code message param type';
    return 'message is no string' if !defined $e->{message} || ref $e->{message};
    return 'empty message' unless length $e->{message};
    my $bytes = $e->{message};
    utf8::encode($bytes);
    return 'message of ' . length($bytes) . ' bytes' if length $bytes >= 1024;
    return 'type is null' unless defined $e->{type};
    for my $k (qw(type code param)) {
        next unless exists $o{$k};
        my ($want, $got) = map { $_ // 'null' } $o{$k}, $e->{$k};
        return "$k is $got, not $want ($e->{message})"
            unless ref $o{$k} eq 'Regexp' ? $got =~ $o{$k} : $got eq $want;
    }
    return "message: $e->{message}" if $o{like} && $e->{message} !~ $o{like};
    return undef;
}

# ---- construction ----

sub new {
    my ($class, %o) = @_;
    my $build = $ENV{GLM_BUILD} // 'build';
    my $self = bless {
        tree => $TREE,
        build => $build =~ m{^/} ? $build : "$TREE/$build",
        dir => File::Temp::tempdir('glmtXXXXXX', DIR => tmp_root(), CLEANUP => 0),
        procs => {}, allow => [], port => port(), workers => 1,
        globals => '', http => '', server => '', locations => undef, log_level => 'info', %o,
    }, $class;
    $self->{module} = "$self->{build}/ngx_http_glm_module.so";
    $self->{socket} //= "$self->{dir}/e.sock";
    mkdir "$self->{dir}/$_" for qw(body proxy fastcgi uwsgi scgi);
    push @LIVE, $self;
    return $self;
}

# A short place: a socket's path holds 107 bytes.
sub tmp_root {
    my $tmp = $ENV{TMPDIR} // '/tmp';
    return length $tmp > 60 || !-w $tmp ? '/tmp' : $tmp;
}

sub need {
    my ($self, @files) = @_;
    for (@files) {
        next if -e;
        Test::More::BAIL_OUT("$_ is not built") if $ENV{GLM_STRICT};
        Test::More::plan(skip_all => "$_ is not built") unless Test::More->builder->current_test;
        die "$_ is not built\n";
    }
}

my %taken;

# A free port of 127.0.0.1 outside the range that clients' sockets come from.
sub port {
    my $at = 10000 + ($$ * 37 + int rand 1000) % 20000;
    for my $i (0 .. 19999) {
        my $p = 10000 + ($at - 10000 + $i) % 20000;
        next if $taken{$p};
        my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $p,
            Proto => 'tcp', Listen => 1, ReuseAddr => 1) or next;
        close $s;
        $taken{$p} = 1;
        return $p;
    }
    die "no free port\n";
}

# ---- processes ----

sub spawn {
    my ($self, $name, $env, @cmd) = @_;
    my $log = "$self->{dir}/$name.err";
    my $pid = fork // die "fork: $!\n";
    if (!$pid) {
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', "$self->{dir}/$name.out";
        open STDERR, '>>', $log;
        $ENV{$_} = $env->{$_} for keys %$env;
        exec { $cmd[0] } @cmd or POSIX::_exit(127);
    }
    $self->{procs}{$name} = { pid => $pid, log => $log, cmd => \@cmd };
    return $pid;
}

# False: it is still there after $seconds.
sub reap {
    my ($self, $name, $seconds) = @_;
    my $p = $self->{procs}{$name} or return 1;
    return wait_for {
        my $got = waitpid $p->{pid}, WNOHANG;
        return 0 if $got == 0;
        $p->{status} = $? if $got == $p->{pid};
        delete $self->{procs}{$name};
        $p->{name} = $name;
        $p->{killed} = delete $self->{killed}{$name};
        push @{ $self->{ended} }, $p;
        return 1;
    } $seconds // 10;
}

sub alive {
    my ($self, $name) = @_;
    return $self->{procs}{$name} && !$self->reap($name, 0);
}

# Sends a signal and waits for the end; a process that stays is a fault.
sub stop {
    my ($self, $name, $signal, $seconds) = @_;
    my $p = $self->{procs}{$name} or return 1;
    kill $signal // 'TERM', $p->{pid};
    return 1 if $self->reap($name, $seconds // 10);
    push @{ $self->{faults} }, "$name did not stop in " . ($seconds // 10) . ' s';
    $self->{killed}{$name} = 1;
    kill 'KILL', $p->{pid};
    $self->reap($name, 10);
    return 0;
}

# ---- engines ----

# The scripted engine: t/fake/fake_engine.h says what a prompt can ask of it.
sub fake {
    my ($self, @args) = @_;
    $self->need("$self->{build}/t/fake_engine", $self->{module});
    $self->{engine_cmd} = [ "$self->{build}/t/fake_engine", '--socket', $self->{socket}, @args ];
    return $self->{absent} ? $self : $self->start_engine;
}

# The real engine on the demo model.
sub engine {
    my ($self, @args) = @_;
    my $model = $self->{model} // "$TREE/models/demo";
    $self->need("$self->{build}/glm-engine", "$model/config.json", $self->{module});
    $self->{engine_cmd} = [ "$self->{build}/glm-engine", '--model', $model, '--socket',
        $self->{socket}, @args ];
    return $self->{absent} ? $self : $self->start_engine;
}

sub start_engine {
    my ($self) = @_;
    my @cmd = @{ $self->{engine_cmd} };
    $self->spawn('engine', {}, @cmd);
    wait_for { $self->connects || !$self->alive('engine') } 60;
    if (!$self->connects) {
        Test::More::diag("engine:\n" . $self->read_file('engine.err'));
        die "engine does not listen: @cmd\n";
    }
    return $self;
}

sub connects {
    my ($self) = @_;
    return 0 unless -S $self->{socket};
    my $s = IO::Socket::UNIX->new(Type => SOCK_SEQPACKET, Peer => $self->{socket}) or return 0;
    close $s;
    return 1;
}

sub stop_engine {
    my ($self, $signal, $seconds) = @_;
    return $self->stop('engine', $signal, $seconds);
}

# ---- nginx ----

# Parts of the configuration: globals, http, server (text), locations (text, in
# place of the default ones), listen (text after the port), workers, log_level.
sub conf {
    my ($self, %o) = @_;
    $self->{$_} = $o{$_} for keys %o;
    return $self;
}

# A sanitized engine that others keep busy may take longer than the defaults for what
# waits behind twenty streams.
sub slow_conf {
    my ($self) = @_;
    return '' if $self->{no_module} || patience() == 1;
    return join ' ', map { $self->{http} =~ /\b$_\b/ ? '' : "$_ 600s;" } qw(glm_first_token_timeout glm_read_timeout);
}

sub conf_text {
    my ($self) = @_;
    my $user = $> == 0 ? 'user ' . getpwuid($>) . ' ' . getgrgid((split / /, $))[0]) . ';' : '';
    my $locations = $self->{locations} // <<'END';
        location / { glm_pass unix:%%SOCKET%%; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location = /plain { return 200 "plain\n"; }
END
    my $text = $self->{text} // <<"END";
$user
daemon off;
worker_processes $self->{workers};
error_log "%%DIR%%/error.log" $self->{log_level};
pid "%%DIR%%/nginx.pid";
@{[ $self->{no_module} ? '' : 'load_module "%%MODULE%%";' ]}
$self->{globals}
events { worker_connections 2048; }
http {
    access_log "%%DIR%%/access.log";
    client_body_temp_path "%%DIR%%/body";
    proxy_temp_path "%%DIR%%/proxy";
    fastcgi_temp_path "%%DIR%%/fastcgi";
    uwsgi_temp_path "%%DIR%%/uwsgi";
    scgi_temp_path "%%DIR%%/scgi";
    $self->{http}
    @{[ $self->slow_conf ]}
    server {
        listen 127.0.0.1:%%PORT%% @{[ $self->{listen} // '' ]};
        $self->{server}
        $locations
    }
@{[ $self->{servers} // '' ]}
}
END
    my %var = (DIR => $self->{dir}, MODULE => $self->{module}, SOCKET => $self->{socket},
        PORT => $self->{port}, BUILD => $self->{build}, %{ $self->{vars} // {} });
    $text =~ s/%%(\w+)%%/$var{$1} \/\/ die "no %%$1%%\n"/ge;
    return $text;
}

sub write_conf {
    my ($self, $file) = @_;
    $file //= "$self->{dir}/nginx.conf";
    open my $f, '>', $file or die "$file: $!\n";
    print $f $self->conf_text;
    close $f;
    return $file;
}

sub nginx {
    for (split(/:/, $ENV{PATH} // ''), qw(/usr/sbin /usr/local/sbin /usr/local/nginx/sbin)) {
        return "$_/nginx" if -x "$_/nginx";
    }
    Test::More::plan(skip_all => 'nginx is not installed');
}

# An instrumented module needs its run-time library in nginx, too.
sub nginx_env {
    my ($self) = @_;
    my %env;
    return \%env unless -e $self->{module};
    my ($lib) = grep { m{/lib[at]san\.so} } map { / => (\S+)/ ? $1 : () }
        qx(ldd '$self->{module}' 2>/dev/null);
    if ($lib) {
        # nginx itself and the master's exit leave memory: leaks are the engine's business
        %env = (LD_PRELOAD => $lib,
            ASAN_OPTIONS => "detect_leaks=0:log_path=$self->{dir}/asan-nginx",
            UBSAN_OPTIONS => "print_stacktrace=1:log_path=$self->{dir}/ubsan-nginx");
    }
    return \%env;
}

sub nginx_cmd {
    my ($self, $conf) = @_;
    return (nginx(), '-p', $self->{dir}, '-e', "$self->{dir}/error.log", '-c', $conf);
}

# nginx -t: (exit status, text).
sub nginx_test {
    my ($self) = @_;
    my $conf = $self->write_conf("$self->{dir}/test.conf");
    my $env = $self->nginx_env;
    my ($pid, $out) = open my $pipe, '-|';
    die "fork: $!\n" unless defined $pid;
    if (!$pid) {
        open STDERR, '>&', \*STDOUT;
        $ENV{$_} = $env->{$_} for keys %$env;
        my @cmd = (nginx(), '-p', $self->{dir}, '-e', "$self->{dir}/test.out", '-t', '-c', $conf);
        exec { $cmd[0] } @cmd or POSIX::_exit(127);
    }
    { local $/; $out = <$pipe> // ''; }
    close $pipe;
    return ($? >> 8, $out);
}

sub run {
    my ($self) = @_;
    $self->need($self->{module}) unless $self->{no_module};
    my $conf = $self->write_conf;
    $self->spawn('nginx', $self->nginx_env, $self->nginx_cmd($conf));
    my $up = wait_for {
        return -1 unless $self->alive('nginx');
        my $s = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$self->{port}") or return 0;
        close $s;
        return -s "$self->{dir}/nginx.pid";
    } 20;
    if (!$up || $up < 0) {
        Test::More::diag($self->read_file('error.log'), $self->read_file('nginx.err'));
        die "nginx does not start\n";
    }
    return $self;
}

# Waits until the workers have found the engine.
sub ready {
    my ($self, $seconds) = @_;
    my $ok = wait_for { my $r = $self->get('/health'); $r && $r->{status} == 200 } $seconds // 10;
    if (!$ok) {
        Test::More::diag("nginx:\n" . $self->read_file('error.log'),
            "engine:\n" . $self->read_file('engine.err'));
        die "not ready\n";
    }
    return $self;
}

sub master { return $_[0]{procs}{nginx}{pid} }

# Pids of the workers, also of those that are shutting down.
sub workers {
    my ($self) = @_;
    my @pids;
    my $master = $self->master or return @pids;
    for my $stat (glob '/proc/[0-9]*/stat') {
        open my $f, '<', $stat or next;
        my ($pid, $state, $ppid) = (<$f> // '') =~ /^(\d+) \(.*\) (\S) (\d+)/ or next;
        push @pids, $pid if $ppid == $master && $state ne 'Z';
    }
    @pids = sort { $a <=> $b } @pids;
    return @pids;
}

# Reloads, and waits for workers of the new configuration.
sub reload {
    my ($self) = @_;
    $self->write_conf;
    my %old = map { $_ => 1 } $self->workers;
    kill 'HUP', $self->master;
    return wait_for { grep({ !$old{$_} } $self->workers) >= $self->{workers} } 10;
}

# ---- requests ----

sub client {
    my ($self, %o) = @_;
    return GLM::HTTP->new(port => $self->{port}, timeout => 30 * patience(), %o);
}

# One request on its own connection; the answer, or undef.  A reference is sent
# as JSON, text as it is.  start => 1: returns the client, with the request sent.
sub post {
    my ($self, $uri, $body, %o) = @_;
    $body = to_json($body) if ref $body;
    my $c = $o{client} // $self->client(%o);
    $c->request('POST', $uri, body => $body,
        headers => [ 'Content-Type', 'application/json', @{ $o{headers} // [] },
            $o{start} || $o{client} ? () : ('Connection', 'close') ]);
    return $c if $o{start};
    return $c->response($o{timeout} && $o{timeout} * patience());
}

sub get {
    my ($self, $uri, %o) = @_;
    my $c = $self->client(%o);
    $c->request($o{method} // 'GET', $uri, headers => [ 'Connection', 'close', @{ $o{headers} // [] } ]);
    return $c->response;
}

# A whole completion, decoded; dies unless it is 200.
sub complete {
    my ($self, %body) = @_;
    my $r = $self->post('/v1/completions', \%body);
    die 'completion failed: ' . ($r ? "$r->{status} $r->{body}" : 'no answer') . "\n"
        unless $r && $r->{status} == 200;
    return json($r->{body});
}

# A whole stream: the chunks before [DONE].
sub stream {
    my ($self, %body) = @_;
    my $c = $self->post('/v1/completions', { %body, stream => TRUE }, start => 1);
    my $r = $c->read_head or die "no answer\n";
    if ($r->{status} != 200) {
        $c->read_some while !$c->{done} && !$c->{eof};
        die "stream failed: $r->{status} $r->{body}\n";
    }
    return data_events($c->events);
}

# A stream read by a process of its own, beside what the test does then.  Called, what
# it returns waits for the end: (text, seconds of the longest wait for an event).
sub beside {
    my ($self, %body) = @_;
    my $pid = open(my $pipe, '-|') // die "fork: $!\n";
    if (!$pid) {
        binmode STDOUT, ':utf8';
        my $c = $self->post('/v1/completions', { %body, stream => TRUE }, start => 1);
        my ($last, $longest, $text) = (undef, 0, '');
        $c->read_head;
        while (my $e = $c->event) {
            $longest = $e->{at} - $last if defined $last && $e->{at} - $last > $longest;
            $last = $e->{at};
            next if !defined $e->{data} || $e->{data} eq '[DONE]';
            my $j = json($e->{data});
            $text .= $j->{error} ? "error: $j->{error}{message}" : $j->{choices}[0]{text} // '';
        }
        print "$longest $text";
        close STDOUT;
        POSIX::_exit(0);
    }
    binmode $pipe, ':utf8';
    return sub {
        my $all = do { local $/; <$pipe> } // '';
        close $pipe;
        my ($longest, $text) = $all =~ /^(\S+) (.*)/s or return ('', undef);
        return ($text, $longest);
    };
}

# ---- statistics ----

# { name => [ [labels, value], ... ] } of /metrics.
sub metrics {
    my ($self) = @_;
    my $r = $self->get('/metrics') or return {};
    my %m;
    for (split /\n/, $r->{body}) {
        /^([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)$/ and push @{ $m{$1} }, [ $2 // '', $3 ];
    }
    return \%m;
}

# The sum over all series of a gauge or counter; undef when it is not there.
sub stat {
    my ($self, $name) = @_;
    my $m = $self->metrics;
    my $all = $m->{"glm:$name"} // $m->{"vllm:$name"} // return undef;
    my $sum = 0;
    $sum += $_->[1] for @$all;
    return $sum;
}

sub wait_stat {
    my ($self, $name, $want, $seconds) = @_;
    my $v;
    my $ok = wait_for { $v = $self->stat($name); defined $v && $v == $want } $seconds;
    Test::More::diag("$name is " . ($v // 'absent') . ", not $want") unless $ok;
    return $ok;
}

# Nothing runs, nothing waits, no page of the KV cache is held.
sub idle {
    my ($self, $seconds, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my @names = qw(num_requests_running num_requests_waiting kv_cache_usage_perc);
    my @v;
    my $ok = wait_for {
        @v = map { $self->stat($_) // 'absent' } @names;
        !grep { $_ eq 'absent' || $_ != 0 } @v;
    } $seconds // 5;
    return Test::More::ok($ok, $name)
        || Test::More::diag(join ', ', map { "$names[$_] $v[$_]" } 0 .. $#names);
}

# ---- files and the end ----

sub read_file {
    my ($self, $name) = @_;
    open my $f, '<', $name =~ m{^/} ? $name : "$self->{dir}/$name" or return '';
    local $/;
    return <$f> // '';
}

# Lines of nginx's log that this test provokes.
sub allow {
    my ($self, @re) = @_;
    push @{ $self->{allow} }, @re;
    return $self;
}

sub stop_all {
    my ($self) = @_;
    $self->stop('nginx', 'TERM', 15);
    $self->stop('engine', 'TERM', 15);
    $self->stop($_, 'KILL') for keys %{ $self->{procs} };
}

sub faults {
    my ($self) = @_;
    my @bad = @{ $self->{faults} // [] };
    my $san = qr/AddressSanitizer|runtime error:|ThreadSanitizer|LeakSanitizer|UndefinedBehavior/;
    for my $file (glob("$self->{dir}/*.log"), glob("$self->{dir}/*.err"), glob "$self->{dir}/*san-*") {
        for my $line (split /\n/, $self->read_file($file)) {
            next unless $line =~ $san
                || $line =~ /\[(?:alert|emerg|crit)\]|signal (?:4|6|7|8|11)\b|core dumped/;
            next if grep { $line =~ $_ } @{ $self->{allow} };
            push @bad, File::Basename::basename($file) . ": $line";
        }
    }
    for my $p (@{ $self->{ended} // [] }) {
        my $s = $p->{status} // next;
        next if $p->{killed} || !$s;
        push @bad, "$p->{name} ended by signal " . ($s & 127) if $s & 127;
        push @bad, "$p->{name} exited with " . ($s >> 8) if $s >> 8;
    }
    return @bad;
}

# The next end of this process, however it comes, is no fault.
sub expect_end { $_[0]{killed}{ $_[1] } = 1 }

sub kill_engine {
    my ($self) = @_;
    $self->expect_end('engine');
    return $self->stop_engine('KILL');
}

sub finish {
    my ($self) = @_;
    return if $self->{finished}++;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    $self->stop_all;
    my @bad = $self->faults;
    my $n = @bad;
    if ($n > 10) {
        splice @bad, 10;
        push @bad, '... ' . ($n - 10) . ' more';
    }
    Test::More::is(join("\n", @bad), '', 'no alert, no sanitizer, all processes end');
}

sub done {
    my ($self) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    $_->finish for @LIVE;
    Test::More::done_testing();
}

# However the script ends: a signal, too, runs what is below.
my $SELF = $$;
@SIG{qw(HUP INT TERM)} = map { my $n = $_; sub { exit 128 + $n } } 1, 2, 15;

sub at_end {
    my ($status) = @_;
    my @left = GLM::Guard::kill_left($$, $status || grep({ !$_->{finished} } @LIVE) ? 0 : 10);
    if (!$status && @left) {
        Test::More::diag('left running, is done() missing? ', join ', ', @left);
        $status = 1;
    }
    for my $t (@LIVE) {
        if (!Test::More->builder->is_passing) {
            my @log = split /\n/, $t->read_file('error.log');
            splice @log, 0, -15 if @log > 15;
            Test::More::diag(join "\n", "nginx's log, $t->{dir}:", @log);
        }
        File::Path::remove_tree($t->{dir}) unless $ENV{GLM_KEEP};
    }
    return $status;
}

END { $? = at_end($?) if $$ == $SELF }

1;
