package GLM::HTTP;

# A raw HTTP/1.1 client: nothing is sent or read but what the test asks for.
# Keepalive, pipelining, partial writes, chunked answers, events as they come.
# Every wait ends at a deadline; a call that misses it returns undef.

use strict;
use warnings;
use IO::Socket::INET;
use IO::Select;
use Socket qw(SOL_SOCKET SO_LINGER IPPROTO_TCP TCP_NODELAY SO_RCVBUF);
use Time::HiRes qw(time);

sub new {
    my ($class, %o) = @_;
    my $self = bless {
        timeout => $o{timeout} // 10, in => '', eof => 0, reset => 0, events => [],
    }, $class;
    $self->{sock} = IO::Socket::INET->new(
        PeerAddr => '127.0.0.1', PeerPort => $o{port}, Proto => 'tcp',
        Timeout => $self->{timeout},
        $o{rcvbuf} ? (Sockopts => [ [ SOL_SOCKET, SO_RCVBUF, pack 'l', $o{rcvbuf} ] ]) : (),
    ) or die "connect to port $o{port}: $@\n";
    setsockopt $self->{sock}, IPPROTO_TCP, TCP_NODELAY, 1;
    $self->{sock}->blocking(0);
    return $self;
}

# Writes all of it, or up to the deadline; returns the bytes written.
sub send {
    my ($self, $bytes) = @_;
    my $end = time + $self->{timeout};
    my $done = 0;
    local $SIG{PIPE} = 'IGNORE';
    while ($done < length $bytes) {
        my $n = syswrite $self->{sock}, $bytes, length($bytes) - $done, $done;
        if (defined $n) {
            $done += $n;
            next;
        }
        last unless $!{EAGAIN} || $!{EINTR};
        my $left = $end - time;
        last if $left <= 0;
        IO::Select->new($self->{sock})->can_write($left);
    }
    return $done;
}

# The bytes of a request.  %o: body, headers => [name, value, ...], http10,
# host, chunked => [pieces], length => a lie.
sub format {
    my ($method, $uri, %o) = @_;
    my $head = "$method $uri HTTP/" . ($o{http10} ? '1.0' : '1.1') . "\r\n"
        . 'Host: ' . ($o{host} // 'localhost') . "\r\n";
    my @h = @{ $o{headers} // [] };
    while (my ($k, $v) = splice @h, 0, 2) {
        $head .= "$k: $v\r\n";
    }
    my $body = $o{body} // '';
    if ($o{chunked}) {
        $head .= "Transfer-Encoding: chunked\r\n";
        $body = join '', (map { sprintf "%x\r\n%s\r\n", length, $_ } @{ $o{chunked} }), "0\r\n\r\n";
    } elsif (defined $o{body} || defined $o{length}) {
        $head .= 'Content-Length: ' . ($o{length} // length $body) . "\r\n";
    }
    return "$head\r\n$body";
}

sub request {
    my ($self, $method, $uri, %o) = @_;
    $self->{method} = $method;
    $self->send(GLM::HTTP::format($method, $uri, %o));
    return $self;
}

# Reads once, waiting until $end.  False: nothing came, or the connection ended.
sub fill {
    my ($self, $end) = @_;
    for ( ;; ) {
        my $n = sysread $self->{sock}, $self->{in}, 65536, length $self->{in};
        return $n if $n;
        if (defined $n) {
            $self->{eof} = 1;
            return 0;
        }
        if (!$!{EAGAIN} && !$!{EINTR}) {
            $self->{eof} = $self->{reset} = 1;
            return 0;
        }
        my $left = $end - time;
        return 0 if $left <= 0 || $self->{eof};
        IO::Select->new($self->{sock})->can_read($left);
    }
}

sub deadline {
    my ($self, $timeout) = @_;
    return time + ($timeout // $self->{timeout});
}

# Status line and headers: { status, headers => { lc name => value }, list => [...] }
sub read_head {
    my ($self, $timeout) = @_;
    my $end = $self->deadline($timeout);
    my $at;
    while (($at = index $self->{in}, "\r\n\r\n") < 0) {
        return undef unless $self->fill($end);
    }
    my $raw = substr $self->{in}, 0, $at + 4, '';
    my ($line, @lines) = split /\r\n/, $raw;
    my %r = (raw => $raw, headers => {}, list => [], at => time, body => '');
    ($r{status}) = $line =~ m{^HTTP/1\.[01] (\d{3})} or die "bad status line: $line\n";
    for (@lines) {
        my ($k, $v) = /^([^:\s]+):\s*(.*)$/ or die "bad header line: $_\n";
        $k = lc $k;
        push @{ $r{list} }, [ $k, $v ];
        $r{headers}{$k} = exists $r{headers}{$k} ? "$r{headers}{$k}, $v" : $v;
    }
    my $none = ($self->{method} // '') eq 'HEAD' || $r{status} =~ /^(1..|204|304)$/;
    $r{mode} = $none ? 'none'
        : lc($r{headers}{'transfer-encoding'} // '') eq 'chunked' ? 'chunked'
        : defined $r{headers}{'content-length'} ? 'length' : 'eof';
    $r{left} = $r{headers}{'content-length'} // 0;
    $self->{res} = \%r;
    $self->{done} = $r{mode} eq 'none' || ($r{mode} eq 'length' && $r{left} == 0);
    $self->{sse} = '';
    $self->{events} = [];
    return \%r;
}

# The next piece of the body, as it came; undef at its end or at the deadline
# ($self->{done} tells which).
sub read_some {
    my ($self, $timeout) = @_;
    my $r = $self->{res};
    my $end = $self->deadline($timeout);
    until ($self->{done}) {
        my $got = '';
        if ($r->{mode} eq 'chunked') {
            if ($self->{in} =~ /^([0-9a-fA-F]+)[^\r\n]*\r\n/) {
                my ($head, $size) = (length $&, hex $1);
                if (length $self->{in} >= $head + $size + 2) {
                    $got = substr $self->{in}, $head, $size;
                    substr($self->{in}, $head + $size, 2) eq "\r\n" or die "bad chunk end\n";
                    substr $self->{in}, 0, $head + $size + 2, '';
                    if ($size == 0) {
                        $self->{done} = 1;
                        return undef;
                    }
                }
            } elsif (length $self->{in} && $self->{in} !~ /^[0-9a-fA-F]+[^\n]{0,200}$/) {
                die 'bad chunk: ' . substr($self->{in}, 0, 40) . "\n";
            }
        } elsif ($r->{mode} eq 'length') {
            $got = substr $self->{in}, 0, $r->{left}, '';
            $r->{left} -= length $got;
            $self->{done} = $r->{left} == 0;
        } else {
            $got = $self->{in};
            $self->{in} = '';
        }
        if (length $got) {
            $r->{body} .= $got;
            return $got;
        }
        if (!$self->fill($end)) {
            $self->{done} = 1 if $r->{mode} eq 'eof' && $self->{eof};
            $r->{broken} = 1 if !$self->{done};
            return undef;
        }
    }
    return undef;
}

# A whole answer; undef if it did not come whole by the deadline.
sub response {
    my ($self, $timeout) = @_;
    my $end = $self->deadline($timeout);
    my $r;
    do {
        $r = $self->read_head($end - time) or return undef;
    } while $r->{status} == 100;
    while (!$self->{done}) {
        last unless defined $self->read_some($end - time);
    }
    return $self->{done} ? $r : undef;
}

# One event, blank line included: { data => text } or { comment => text } or
# { bad => text }, each with `at', its time.
sub parse_event {
    my ($raw) = @_;
    return { at => time, raw => $raw,
        $raw =~ /\Adata: ([^\n]*)\n\n\z/ ? (data => $1)
        : $raw =~ /\A:[ ]?([^\n]*)\n\n\z/ ? (comment => $1) : (bad => $raw) };
}

# The next event of a stream; undef at the end.
sub event {
    my ($self, $timeout) = @_;
    my $end = $self->deadline($timeout);
    for ( ;; ) {
        if ((my $i = index $self->{sse}, "\n\n") >= 0) {
            my $raw = substr $self->{sse}, 0, $i + 2, '';
            my $e = parse_event($raw);
            push @{ $self->{events} }, $e;
            return $e;
        }
        my $piece = $self->read_some($end - time);
        return undef unless defined $piece;
        $self->{sse} .= $piece;
    }
}

# All events up to the end of the answer.
sub events {
    my ($self, $timeout) = @_;
    my $end = $self->deadline($timeout);
    while ($self->event($end - time)) { }
    return @{ $self->{events} };
}

# True when the peer has closed (and sent nothing more) by the deadline.
sub wait_eof {
    my ($self, $timeout) = @_;
    my $end = $self->deadline($timeout);
    while (!$self->{eof}) {
        $self->fill($end) or last;
    }
    return $self->{eof};
}

sub shut_write { shutdown $_[0]{sock}, 1 }

sub close {
    my ($self) = @_;
    my $s = delete $self->{sock} or return;
    CORE::close $s;
}

# Leaves with a TCP reset.
sub reset {
    my ($self) = @_;
    my $s = delete $self->{sock} or return;
    setsockopt $s, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0;
    CORE::close $s;
}

1;
