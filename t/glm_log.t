# What an access log tells of a request: tokens, times, reason, also of a client that left.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $URI = '/v1/completions';
my $P = 'English: Where is the file? German:';
my $t = GLM::Test->new->engine('--max-num-seqs', 2);
$t->conf(http => <<'END')->run->ready;
    log_format glm '$glm_request_id|$status|$glm_model|$glm_prompt_tokens|$glm_completion_tokens|$glm_finish_reason|$glm_queue_time|$glm_ttft|$glm_tpot|$glm_engine';
    access_log "%%DIR%%/glm.log" glm;
END

sub logged {
    my ($id) = @_;
    my ($line) = wait_for { my ($l) = $t->read_file('glm.log') =~ /^(\Q$id\E\|.*)$/m; $l } 5;
    return split /\|/, $line // '', -1;
}
sub ask {
    my ($id, $body, %o) = @_;
    return $t->post($URI, $body, headers => [ 'X-Request-Id', $id ], %o);
}

ask('plain', { prompt => $P, temperature => 0 });
my @l = logged('plain');
is_deeply([ @l[ 1 .. 5 ] ], [ 200, 'glm-demo-9m', 11, 6, 'stop' ], 'a plain answer');
like($l[$_], qr/^\d+\.\d+$/, ('queue time', 'time to first token')[ $_ - 6 ]) for 6, 7;
cmp_ok($l[7], '<', 60, 'in seconds');
like($l[8], qr/^\d+\.\d+$/, 'time a token');
cmp_ok($l[8], '<', 10, 'in seconds, too');
is($l[9], "unix:$t->{socket}", 'the engine');

my $c = ask('stream', { prompt => $P, temperature => 0, max_tokens => 2, stream => TRUE }, start => 1);
$c->read_head;
$c->events;
@l = logged('stream');
is_deeply([ @l[ 1 .. 5 ] ], [ 200, 'glm-demo-9m', 11, 2, 'length' ], 'a stream');

ask('bad', { prompt => $P, temperature => 9 });
is_deeply([ (logged('bad'))[ 1, 3 .. 9 ] ], [ 400, ('-') x 7 ], 'a refusal has no tokens');

my @M = (prompt => 'This is the [MASK] package, which contains the [MASK] for development.', temperature => 0);
$t->post('/v1/infill', { @M, max_tokens => 1 }, headers => [ 'X-Request-Id', 'infill' ]);
is_deeply([ (logged('infill'))[ 1, 2, 4, 5 ] ], [ 200, 'glm-demo-9m', 2, 'length' ], 'blanks');
$t->post('/v1/score', { prompt => $P, choices => [ 'Wo ist die Datei?', 'Ja' ] }, headers => [ 'X-Request-Id', 'score' ]);
@l = logged('score');
is_deeply([ @l[ 1, 2, 5 ] ], [ 200, 'glm-demo-9m', 'length' ], 'a score');
cmp_ok($l[4], '>', 5, 'its tokens');
$t->post('/infill', { prompt => 'English: The', input_suffix => ' is open.' }, headers => [ 'X-Request-Id', 'editor' ]);
is_deeply([ (logged('editor'))[ 1, 2, 5 ] ], [ 200, 'glm-demo-9m', 'stop' ], 'an editor');

$c = ask('left', { prompt => $P, temperature => 0, ignore_eos => TRUE, max_tokens => 1000, stream => TRUE }, start => 1);
$c->read_head;
$c->event for 1 .. 5;
$c->close;
@l = logged('left');
is($l[1], 200, 'a client that left a stream: its status went out');
is($l[3], 11, 'its prompt is counted');
cmp_ok($l[4] eq '-' ? 0 : $l[4], '>=', 5, 'and what was generated for it') || diag("@l");
is($l[5], 'abort', 'reason');
like($l[8], qr/^\d+\.\d+$/, 'its time a token');
is($l[9], "unix:$t->{socket}", 'its engine');

$t->idle(5, 'nothing is left');
$t->done;
