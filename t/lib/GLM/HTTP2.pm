package GLM::HTTP2;

# An HTTP/2 client in clear text with prior knowledge: frames one by one.  It
# answers PING and SETTINGS and, unless told not to, grants window as data comes.

use strict;
use warnings;
use IO::Select;
use Time::HiRes qw(time);
use GLM::HPACK;
use GLM::HTTP;

use constant {
    DATA => 0, HEADERS => 1, RST_STREAM => 3, SETTINGS => 4, PING => 6, GOAWAY => 7,
    WINDOW_UPDATE => 8, CONTINUATION => 9, END_STREAM => 1, END_HEADERS => 4, ACK => 1,
};

# %o: port, timeout, window (initial stream window), grant => 0 to grant nothing.
sub new {
    my ($class, %o) = @_;
    my $self = bless {
        timeout => $o{timeout} // 10, in => '', next => 1, streams => {}, eof => 0,
        hpack => GLM::HPACK->new, enc => GLM::HPACK->new, grant => $o{grant} // 1,
        send_window => 65535, stream_window => 65535, max_frame => 16384,
    }, $class;
    $self->{http} = GLM::HTTP->new(port => $o{port}, timeout => $self->{timeout});
    $self->{sock} = $self->{http}{sock};
    my $settings = pack('nN', 2, 0);                       # no push
    $settings .= pack 'nN', 4, $o{window} if defined $o{window};
    $self->raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    $self->frame(SETTINGS, 0, 0, $settings);
    return $self;
}

sub raw {
    my ($self, $bytes) = @_;
    return $self->{http}->send($bytes);
}

sub frame {
    my ($self, $type, $flags, $stream, $payload) = @_;
    return $self->raw(substr(pack('N', length $payload), 1)
        . pack('CCN', $type, $flags, $stream) . $payload);
}

# Opens a stream and sends a request; body as DATA within the window.
sub request {
    my ($self, $method, $path, %o) = @_;
    my $id = $self->{next};
    $self->{next} += 2;
    $self->{streams}{$id} = { id => $id, body => '', sse => '', window => $self->{stream_window},
        events => [], headers => {} };
    my @h = (':method', $method, ':scheme', 'http', ':path', $path,
        ':authority', $o{host} // 'localhost', @{ $o{headers} // [] });
    my $body = $o{body};
    push @h, 'content-length', length $body if defined $body && !$o{no_length};
    my $end = !defined $body && !$o{open};
    $self->frame(HEADERS, END_HEADERS | ($end ? END_STREAM : 0), $id, $self->{enc}->encode(@h));
    $self->data($id, $body, !$o{open}) if defined $body;
    return $id;
}

sub data {
    my ($self, $id, $body, $last) = @_;
    my $s = $self->{streams}{$id};
    my $end = time + $self->{timeout};
    for ( ;; ) {
        my $n = length $body;
        for ($self->{max_frame}, $self->{send_window}, $s->{window}) {
            $n = $_ if $n > $_;
        }
        if ($n <= 0 && length $body) {                     # wait for window
            return 0 unless $self->pump($end);
            next;
        }
        my $piece = substr $body, 0, $n, '';
        $self->{send_window} -= $n;
        $s->{window} -= $n;
        $self->frame(DATA, $last && !length $body ? END_STREAM : 0, $id, $piece);
        return 1 unless length $body;
    }
}

sub rst {
    my ($self, $id, $code) = @_;
    return $self->frame(RST_STREAM, 0, $id, pack 'N', $code // 8);
}

sub window {
    my ($self, $id, $n) = @_;
    return $self->frame(WINDOW_UPDATE, 0, $id, pack 'N', $n);
}

# Reads and handles one frame; false at the deadline or the end.
sub pump {
    my ($self, $end) = @_;
    for ( ;; ) {
        if (length $self->{in} >= 9) {
            my $len = unpack 'N', "\0" . substr $self->{in}, 0, 3;
            if (length $self->{in} >= 9 + $len) {
                my ($type, $flags, $id) = unpack 'CCN', substr $self->{in}, 3, 6;
                my $payload = substr $self->{in}, 9, $len;
                substr $self->{in}, 0, 9 + $len, '';
                $self->handle($type, $flags, $id & 0x7fffffff, $payload);
                return 1;
            }
        }
        my $n = sysread $self->{sock}, $self->{in}, 65536, length $self->{in};
        next if $n;
        if (defined $n || (!$!{EAGAIN} && !$!{EINTR})) {
            $self->{eof} = 1;
            return 0;
        }
        my $left = $end - time;
        return 0 if $left <= 0;
        IO::Select->new($self->{sock})->can_read($left);
    }
}

sub handle {
    my ($self, $type, $flags, $id, $payload) = @_;
    my $s = $self->{streams}{$id} // {};
    if ($type == SETTINGS) {
        return if $flags & ACK;
        while (length $payload >= 6) {
            my ($k, $v) = unpack 'nN', substr $payload, 0, 6, '';
            $self->{max_frame} = $v if $k == 5;
            if ($k == 4) {
                $_->{window} += $v - $self->{stream_window} for values %{ $self->{streams} };
                $self->{stream_window} = $v;
            }
        }
        $self->frame(SETTINGS, ACK, 0, '');
    } elsif ($type == PING) {
        $self->frame(PING, ACK, 0, $payload) unless $flags & ACK;
    } elsif ($type == GOAWAY) {
        $self->{goaway} = [ unpack 'NN', $payload ];
    } elsif ($type == WINDOW_UPDATE) {
        my $n = unpack 'N', $payload;
        if ($id) { $s->{window} += $n } else { $self->{send_window} += $n }
    } elsif ($type == RST_STREAM) {
        $s->{rst} = unpack 'N', $payload;
        $s->{end} = 1;
    } elsif ($type == HEADERS || $type == CONTINUATION) {
        if ($type == HEADERS) {
            if ($flags & 8) {                              # padded
                my $pad = unpack 'C', substr $payload, 0, 1, '';
                $payload = substr $payload, 0, length($payload) - $pad;
            }
            substr $payload, 0, 5, '' if $flags & 0x20;    # priority
            $s->{block} = '';
            $s->{ends} = $flags & END_STREAM;
        }
        $s->{block} .= $payload;
        return unless $flags & END_HEADERS;
        for ($self->{hpack}->decode(delete $s->{block})) {
            my ($k, $v) = @$_;
            if ($k eq ':status') { $s->{status} = $v } else { $s->{headers}{$k} = $v }
        }
        $s->{head_at} = time;
        $s->{end} = 1 if $s->{ends};
    } elsif ($type == DATA) {
        my $n = length $payload;
        if ($flags & 8) {
            my $pad = unpack 'C', substr $payload, 0, 1, '';
            $payload = substr $payload, 0, length($payload) - $pad;
        }
        $s->{body} .= $payload;
        $s->{sse} .= $payload;
        $s->{end} = 1 if $flags & END_STREAM;
        if ($self->{grant} && $n) {
            $self->window(0, $n);
            $self->window($id, $n) unless $s->{end};
        }
    }
}

# Pumps until $done->() or the deadline; returns what $done->() said last.
sub until {
    my ($self, $done, $timeout) = @_;
    my $end = time + ($timeout // $self->{timeout});
    my $r;
    until ($r = $done->()) {
        $self->pump($end) or return $done->();
    }
    return $r;
}

# A whole answer (as GLM::HTTP::response), undef at the deadline.
sub response {
    my ($self, $id, $timeout) = @_;
    my $s = $self->{streams}{$id};
    $self->until(sub { $s->{end} }, $timeout) or return undef;
    return $s;
}

sub head {
    my ($self, $id, $timeout) = @_;
    my $s = $self->{streams}{$id};
    return $self->until(sub { $s->{status} }, $timeout) ? $s : undef;
}

# The next event of a stream, as GLM::HTTP::event.
sub event {
    my ($self, $id, $timeout) = @_;
    my $s = $self->{streams}{$id};
    $self->until(sub { index($s->{sse}, "\n\n") >= 0 || $s->{end} }, $timeout);
    my $i = index $s->{sse}, "\n\n";
    return undef if $i < 0;
    my $raw = substr $s->{sse}, 0, $i + 2, '';
    my $e = GLM::HTTP::parse_event($raw);
    push @{ $s->{events} }, $e;
    return $e;
}

sub events {
    my ($self, $id, $timeout) = @_;
    my $end = time + ($timeout // $self->{timeout});
    while ($self->event($id, $end - time)) { }
    return @{ $self->{streams}{$id}{events} };
}

sub close { my $s = delete $_[0]{sock} or return; CORE::close $s }

1;
