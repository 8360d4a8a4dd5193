#!/usr/bin/perl
# Writes t/data/wire/fuzz: a few small messages that t/fuzz/wire.c starts from.

use strict;
use warnings;

my $dir = 't/data/wire/fuzz';

sub pad { my ($s, $n) = @_; return $s . "\0" x (-length($s) % $n) }
sub section { my ($type, $s) = @_; return pad(pack('vvV', $type, 0, length $s) . $s, 8) }
sub str { my ($s) = @_; return pad(pack('V', length $s) . $s, 4) }

my $submit = pack('V C C v V V V l l V Q Q Q V V Q V V q Q',
    96, 1, 0, 0, 2, 1, 0, 16, 0, 0, 65536, 0, 0, 0, 1, 0, 0, 0, 0, 0);
my $sampling = pack('V V Q f f f l f f f l l l V f V V',
    72, 1, 42, 0.5, 0.9, 0, 40, 0, 0, 1, 5, -1, 0, 1, 1, 0, 0);
my $record = pack('V v v Q', 16 + 112, 1, 0, 7) . $submit . section(1, 'hello');

my %seed = (
    submit   => "\0" . $submit . section(1, 'Hello [MASK]') . section(16, $sampling)
        . section(17, str("\n") . str('stop')),
    ids      => "\0" . $submit . section(3, pack('l*', 1, 2, 999)) . section(2, 'plain'),
    later    => "\0" . $submit . section(1, 'x') . section(19, pack('l f', 1, 2))
        . section(24, pack('V V', 8, 1) . '{}'),
    critical => "\0" . $submit . pack('vvV', 777, 1, 8) . '12345678',
    ring     => "\1" . pack('Q', length $record) . $record,
    window   => "\2" . pack('V V Q', 16, 0, 4096),
);

for my $name (keys %seed) {
    open my $f, '>:raw', "$dir/$name" or die "$dir/$name: $!\n";
    print $f $seed{$name};
    close $f or die "$dir/$name: $!\n";
}
