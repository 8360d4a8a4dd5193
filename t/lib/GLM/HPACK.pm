package GLM::HPACK;

# HPACK (RFC 7541) for tests: encodes every header as a literal, so that the
# encoder has no state; decodes all forms, with the dynamic table and Huffman.

use strict;
use warnings;

my @STATIC = map { [ split / /, $_, 2 ] } split /\n/, <<'END';
:authority 
:method GET
:method POST
:path /
:path /index.html
:scheme http
:scheme https
:status 200
:status 204
:status 206
:status 304
:status 400
:status 404
:status 500
accept-charset 
accept-encoding gzip, deflate
accept-language 
accept-ranges 
accept 
access-control-allow-origin 
age 
allow 
authorization 
cache-control 
content-disposition 
content-encoding 
content-language 
content-length 
content-location 
content-range 
content-type 
cookie 
date 
etag 
expect 
expires 
from 
host 
if-match 
if-modified-since 
if-none-match 
if-range 
if-unmodified-since 
last-modified 
link 
location 
max-forwards 
proxy-authenticate 
proxy-authorization 
range 
referer 
refresh 
retry-after 
server 
set-cookie 
strict-transport-security 
transfer-encoding 
user-agent 
vary 
via 
www-authenticate 
END

# The Huffman code is canonical: the lengths of symbols 0..255 and EOS suffice.
my @LENGTH = qw(
    13 23 28 28 28 28 28 28 28 24 30 28 28 30 28 28 28 28 28 28 28 28 30 28 28 28
    28 28 28 28 28 28 6 10 10 12 13 6 8 11 10 10 8 11 8 6 6 6 5 5 5 6 6 6 6 6 6 6 7
    8 15 6 12 10 13 6 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 8 7 8 13 19 13 14
    6 15 5 6 5 6 5 6 6 6 5 7 7 6 6 6 5 6 7 6 5 5 6 7 7 7 7 7 15 11 14 13 28 20 22
    20 20 22 22 22 23 22 23 23 23 23 23 24 23 24 24 22 23 24 23 23 23 23 21 22 23
    22 23 23 24 22 21 20 22 22 23 23 21 23 22 22 24 21 22 23 23 21 21 22 21 23 22
    23 23 20 22 22 22 23 22 22 23 26 26 20 19 22 23 22 25 26 26 26 27 27 26 24 25
    19 21 26 27 27 26 27 24 21 21 26 26 28 27 27 27 20 24 20 21 22 21 21 23 22 22
    25 25 24 24 26 23 26 27 26 26 27 27 27 27 27 28 27 27 27 27 27 26 30);

my %HUFF;       # "length:code" => symbol
{
    my ($code, $len) = (-1, 0);
    for my $s (sort { $LENGTH[$a] <=> $LENGTH[$b] || $a <=> $b } 0 .. 256) {
        $code = ($code + 1) << ($LENGTH[$s] - $len);
        $len = $LENGTH[$s];
        $HUFF{"$len:$code"} = $s;
    }
}

sub new {
    my ($class) = @_;
    return bless { table => [], size => 0, max => 4096 }, $class;
}

sub _int {
    my ($value, $bits, $flags) = @_;
    my $mask = (1 << $bits) - 1;
    return pack 'C', $flags | $value if $value < $mask;
    my $out = pack 'C', $flags | $mask;
    $value -= $mask;
    while ($value >= 128) {
        $out .= pack 'C', $value & 127 | 128;
        $value >>= 7;
    }
    return $out . pack 'C', $value;
}

# Literal without indexing, new name, no Huffman.
sub encode {
    my ($self, @headers) = @_;
    my $out = '';
    while (my ($name, $value) = splice @headers, 0, 2) {
        $out .= "\0" . _int(length $name, 7, 0) . $name . _int(length $value, 7, 0) . $value;
    }
    return $out;
}

sub huffman {
    my ($bytes) = @_;
    my ($out, $code, $len) = ('', 0, 0);
    for my $bit (split //, unpack 'B*', $bytes) {
        $code = $code << 1 | $bit;
        $len++;
        my $s = $HUFF{"$len:$code"};
        next unless defined $s;
        die "hpack: EOS in a string\n" if $s == 256;
        $out .= chr $s;
        ($code, $len) = (0, 0);
    }
    die "hpack: bad Huffman padding\n" if $len > 7 || $code != (1 << $len) - 1;
    return $out;
}

# Takes a header block, returns [name, value] pairs in order.
sub decode {
    my ($self, $block) = @_;
    my ($pos, @out) = (0);

    my $byte = sub {
        die "hpack: truncated\n" if $pos >= length $block;
        return ord substr $block, $pos++, 1;
    };
    my $int = sub {
        my ($bits, $first) = @_;
        my $mask = (1 << $bits) - 1;
        my $value = $first & $mask;
        return $value if $value < $mask;
        my ($shift, $b) = (0);
        do {
            $b = $byte->();
            $value += ($b & 127) << $shift;
            $shift += 7;
        } while $b & 128;
        return $value;
    };
    my $string = sub {
        my $first = $byte->();
        my $len = $int->(7, $first);
        die "hpack: truncated\n" if $pos + $len > length $block;
        my $s = substr $block, $pos, $len;
        $pos += $len;
        return $first & 128 ? huffman($s) : $s;
    };
    my $entry = sub {
        my ($i) = @_;
        die "hpack: index 0\n" if $i == 0;
        return $STATIC[$i - 1] if $i <= @STATIC;
        return $self->{table}[$i - @STATIC - 1] // die "hpack: index $i\n";
    };

    while ($pos < length $block) {
        my $b = $byte->();
        if ($b & 0x80) {
            push @out, [ @{ $entry->($int->(7, $b)) } ];
        } elsif (($b & 0xe0) == 0x20) {
            $self->{max} = $int->(5, $b);
            $self->_evict(0);
        } else {
            my $index = $b & 0x40;
            my $i = $int->($index ? 6 : 4, $b);
            my $name = $i ? $entry->($i)[0] : $string->();
            my $pair = [ $name, $string->() ];
            push @out, $pair;
            if ($index) {
                my $size = 32 + length($pair->[0]) + length $pair->[1];
                $self->_evict($size);
                if ($size <= $self->{max}) {
                    unshift @{ $self->{table} }, [ @$pair ];
                    $self->{size} += $size;
                }
            }
        }
    }
    return @out;
}

sub _evict {
    my ($self, $need) = @_;
    while (@{ $self->{table} } && $self->{size} + $need > $self->{max}) {
        my $old = pop @{ $self->{table} };
        $self->{size} -= 32 + length($old->[0]) + length $old->[1];
    }
}

1;
