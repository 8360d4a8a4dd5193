# A directive that takes a bad value, is lost or leaks in inheritance, or a location
# shape in which a path is not found.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $t = GLM::Test->new;
$t->need($t->{module});

# nginx -t, with no engine anywhere

sub accepts {
    my ($name, %parts) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    $t->conf(http => '', server => '', servers => '', locations => '', %parts);
    my ($status, $out) = $t->nginx_test;
    is($status, 0, $name) or diag($out);
    unlike($out, qr/\[(?!notice)\w+\]/, "$name: without a word") if !$status;
}

sub refuses {
    my ($text, $like, %parts) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $where = delete $parts{where} // 'locations';
    $t->conf(http => '', server => '', servers => '', locations => '', %parts);
    $t->conf($where => ($t->{$where} // '') . $text);
    my $line = 1 + (() = substr($t->conf_text, 0, index $t->conf_text, $text) =~ /\n/g);
    my ($status, $out) = $t->nginx_test;
    my $name = "refused: $text";
    $name = substr($name, 0, 60) . '...' if length $name > 60;
    ok($status, $name);
    like($out, qr/\[emerg\].*$like.* in \S*test\.conf:$line$/m, "$name: says where and why");
}

my $pass = 'glm_pass unix:/nowhere/engine.sock;';
accepts('no engine', locations => "location / { $pass }");
accepts('all directives in http', locations => "location / { $pass }", http => <<'END');
    glm_first_token_timeout 10s; glm_read_timeout 500ms; glm_ping_interval 1s; glm_max_prompt 64k;
    glm_max_n 4; glm_max_stops 4; glm_buffer_size 4k; glm_api completions models;
END
accepts('in server', locations => "location / { $pass }", server => <<'END');
    glm_first_token_timeout 10s; glm_read_timeout 500ms; glm_ping_interval 1s; glm_max_prompt 64k;
    glm_max_n 4; glm_max_stops 4; glm_buffer_size 4k; glm_api completions models;
END
accepts('in location, with metrics', locations => <<"END");
    location / { $pass glm_first_token_timeout 10s; glm_read_timeout 1m; glm_ping_interval 1s; glm_max_prompt 64k;
        glm_max_n 4; glm_max_stops 4; glm_buffer_size 4k; glm_api completions models health version
        tokenize detokenize openapi metrics status; }
END
accepts('several engines', locations => "location /a/ { $pass } location /b/ { glm_pass unix:/other; }");
accepts('the same twice', locations => "location /a/ { $pass } location /b/ { $pass }");
accepts('a path in quotes', locations => 'location / { glm_pass "unix:/no where/e.sock"; }');
accepts('inside if', locations => "location / { if (\$arg_a) { $pass } return 404; }");
accepts('limit_except', locations => "location / { $pass limit_except POST { deny all; } }");

for my $d ('glm_pass;', 'glm_api;', 'glm_max_n;', 'glm_pass unix:/a unix:/b;', 'glm_max_n 1 2;') {
    refuses("location / { $pass $d }" =~ s/^(location \/ \{ )\Q$pass\E (?=glm_pass)/$1/r,
        'invalid number of arguments');
}
refuses("location / { $pass $pass }", 'is duplicate');
refuses("location / { $pass $_ }", 'invalid (value|number)')
    for map({; "glm_first_token_timeout $_;", "glm_read_timeout $_;", "glm_ping_interval $_;" } 'abc', '-1s', '5x'),
    map({; "glm_max_prompt $_;", "glm_buffer_size $_;" } 'abc', '-1', '5q', '99999999999999999999'),
    map({; "glm_max_n $_;", "glm_max_stops $_;" } 'abc', '-1', '1.5', '99999999999999999999');
refuses("location / { $pass $_ }", 'must be')
    for 'glm_first_token_timeout 0;', 'glm_read_timeout 0;', 'glm_max_n 0;', 'glm_buffer_size 1;', 'glm_max_prompt 0;';
refuses("location / { $pass glm_max_n 2; glm_max_n 3; }", 'is duplicate');
refuses("location / { $pass glm_api nothing; }", 'nothing');
refuses("location / { $pass glm_api models nothing; }", 'nothing');
refuses("location / { $pass glm_api models models; }", 'models');
refuses("location / { glm_pass $_; }", 'glm_pass|engine|unix')
    for '127.0.0.1:80', 'http://a', 'unix:', 'unix', '/run/engine.sock', 'unix:relative', '""';
refuses('location / { glm_pass unix:/' . 'x' x 107 . '; }', '107|too long');
accepts('a path of 107 bytes', locations => 'location / { glm_pass unix:/' . 'x' x 106 . '; }');
refuses("$pass", 'not allowed here', where => 'server');
refuses("$pass", 'not allowed here', where => 'http');
refuses('glm_max_n 5;', 'not allowed here', where => 'globals');
refuses('glm_no_such_directive 1;', 'unknown directive', where => 'http', globals => '');

# Location shapes

$t = GLM::Test->new->engine;
my $p2 = GLM::Test::port();
$t->conf(vars => { P2 => $p2 }, http => <<'END', servers => <<'END', locations => <<'END')->run->ready;
    glm_max_stops 2; glm_max_prompt 40; glm_api completions models tokenize health;
END
    server {
        listen 127.0.0.1:%%P2%%;
        glm_max_prompt 30; glm_api completions;
        location / { glm_pass unix:%%SOCKET%%; glm_api health models tokenize completions version; }
        location /inherit/ { glm_pass unix:%%SOCKET%%; }
        location /own/ { glm_pass unix:%%SOCKET%%; glm_max_prompt 20; glm_max_stops 3; }
        location /nested/ {
            glm_max_prompt 10; glm_pass unix:%%SOCKET%%;
            location /nested/in/ { glm_pass unix:%%SOCKET%%; }
            location /nested/plain/ { return 418; }
            location /nested/bare/ { }
        }
    }
END
        location / { glm_pass unix:%%SOCKET%%; }
        location /v1/ { glm_pass unix:%%SOCKET%%; }
        location = /v1/models { glm_pass unix:%%SOCKET%%; }
        location /llm/ { glm_pass unix:%%SOCKET%%; }
        location = /exact/v1/completions { glm_pass unix:%%SOCKET%%; }
        location ~ ^/re/\d+/ { glm_pass unix:%%SOCKET%%; }
        location /if/ { if ($arg_a = "1") { glm_pass unix:%%SOCKET%%; } }
        location /rewrite/ { rewrite ^/rewrite/(.*) /v1/completions break; glm_pass unix:%%SOCKET%%; }
        location /only/ { glm_pass unix:%%SOCKET%%; glm_api tokenize; }
        location /except/ { glm_pass unix:%%SOCKET%%; limit_except POST { deny all; } }
        location = /m { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location /internal/ { glm_pass unix:%%SOCKET%%; glm_api metrics models; }
        location /limited/ { glm_pass unix:%%SOCKET%%; deny all; }
        location @named { glm_pass unix:%%SOCKET%%; }
        location /to_named/ { error_page 418 = @named; return 418; }
END

my %ask = (prompt => 'English: Save the file German:', temperature => 0);
my $text = 'Datei speichern';
sub answer {
    my ($uri, %o) = @_;
    my $r = $t->post($uri, { %ask, %{ $o{body} // {} } }, port => $o{port} // $t->{port});
    return 'no answer' unless $r;
    return $r->{status} if $r->{status} != 200;
    return json($r->{body})->{choices}[0]{text};
}
for my $uri ('/v1/completions', '/a/b/v1/completions', '/llm/v1/completions',
    '/exact/v1/completions', '/re/17/v1/completions', '/if/v1/completions?a=1', '/rewrite/x',
    '/except/v1/completions', '/to_named/v1/completions', '/v1//completions', '/v1/x/../completions',
    '/v1/completions?x=/v1/models', '/v1/%63ompletions')
{
    is(answer($uri), $text, "POST $uri");
}
is(answer('/if/v1/completions'), 404, 'if not taken');
is(answer('/limited/v1/completions'), 403, 'access rules stay in force');
is(answer('/only/v1/completions'), 404, 'glm_api narrows a location');
is($t->post('/only/tokenize', { prompt => 'a' })->{status}, 200, 'to what it names');
is($t->post('/only/v1/tokenize', { prompt => 'a' })->{status}, 200, 'with its alias');
is($t->get('/except/health')->{status}, 403, 'limit_except');
is($t->get($_)->{status}, 200, "GET $_") for '/v1/models', '/llm/v1/models', '/health', '/llm/health',
    '/x/y/health';
check_error($t->get('/version'), 404, 'glm_api of http narrows');
is($t->get('/m')->{status}, 404, 'a path that names no API');
is($t->get($_)->{status}, 404, "no $_ without glm_api metrics") for '/llm/metrics', '/x/metrics', '/status';
is($t->get('/internal/metrics')->{status}, 200, 'metrics where named');
is($t->get('/internal/v1/models')->{status}, 200, 'beside another');
is($t->get('/internal/health')->{status}, 404, 'and nothing else');

# Inheritance: the number of stops and the size of the prompt tell the level

sub status { return $t->post($_[0], { prompt => $_[1], max_tokens => 1, stop => $_[2] }, port => $_[3] // $t->{port})->{status} }
my @stops = map { [ ('x') x $_ ] } 0 .. 4;
is(status('/v1/completions', 'a' x 40, $stops[2]), 200, 'http level: at the limit');
is(status('/v1/completions', 'a' x 41, []), 400, 'http level: prompt');
is(status('/v1/completions', 'a', $stops[3]), 400, 'http level: stops');
is(status('/inherit/v1/completions', 'a' x 30, $stops[2], $p2), 200, 'server level: at the limit');
is(status('/inherit/v1/completions', 'a' x 31, [], $p2), 400, 'server level over http');
is(status('/inherit/v1/completions', 'a', $stops[3], $p2), 400, 'http level through a server');
is(status('/own/v1/completions', 'a' x 20, $stops[3], $p2), 200, 'location level: at the limit');
is(status('/own/v1/completions', 'a' x 21, [], $p2), 400, 'location level over server');
is(status('/own/v1/completions', 'a', $stops[4], $p2), 400, 'location level over http');
is(status('/nested/in/v1/completions', 'a' x 10, [], $p2), 200, 'nested: inherits');
is(status('/nested/in/v1/completions', 'a' x 11, [], $p2), 400, 'nested: from the location around it');
is(status('/nested/plain/v1/completions', 'a', [], $p2), 418, 'glm_pass is not inherited over a handler');
is(status('/nested/bare/v1/completions', 'a', [], $p2), 404, 'nor into a nested location, as proxy_pass');
is($t->get('/version', port => $p2)->{status}, 200, 'glm_api of a location over that of its server');
is($t->get('/inherit/health', port => $p2)->{status}, 404, 'glm_api of a server over that of http');

$t->done;
