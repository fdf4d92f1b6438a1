"""Downloads from a server that breaks off, lies and vanishes; notebook 00d shows the same, one by one."""
import hashlib, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hrnet_nbdev import download as d, weights as w
from hrnet_nbdev.files import UserError

BYTES = bytes(i * 7 % 253 for i in range(300_000))
SHA256 = hashlib.sha256(BYTES).hexdigest()


class Server(BaseHTTPRequestHandler):
    "`/break/...` sends 70,000 bytes a connection, `/long` and `/short` lie about the length, `/wrong` serves another file"
    log, ranges = [], True

    def head(self, start, claimed):
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(claimed - start))
        if start: self.send_header('Content-Range', f'bytes {start}-{claimed - 1}/{claimed}')
        self.end_headers()

    def do_GET(self):
        kind = self.path.split('/')[1]
        start = int((self.headers['Range'] or 'bytes=0-')[6:-1]) if self.ranges else 0
        self.log.append((kind, start))
        if kind in ('404', '403', '500'): return self.send_error(int(kind))
        if start >= len(BYTES): return self.send_error(416)
        end = 250_000 if kind == 'short' else len(BYTES)
        self.head(start, end + 50_000 * (kind == 'long'))
        body = bytes(len(BYTES)) if kind == 'wrong' else BYTES
        self.wfile.write(body[start:min(end, start + 70_000) if kind == 'break' else end])

    def log_message(self, *args): pass


@pytest.fixture
def host():
    Server.log.clear()
    server = ThreadingHTTPServer(('127.0.0.1', 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def get(url, path, digest=SHA256, **kw): return d.download(url, path, digest, wait=0, quiet=True, **kw)


def test_breaks_are_resumed(tmp_path, host):
    assert get(f'{host}/break/a', tmp_path / 'deep' / 'a.pth').read_bytes() == BYTES
    assert Server.log == [('break', s) for s in range(0, 300_000, 70_000)]
    assert [p.name for p in (tmp_path / 'deep').glob('*.part')] == []


def test_the_next_run_continues(tmp_path, host):
    (tmp_path / 'a.pth.part').write_bytes(BYTES[:123_456])
    assert get(f'{host}/good/a', tmp_path / 'a.pth').read_bytes() == BYTES and Server.log == [('good', 123_456)]


def test_a_complete_part_is_only_verified(tmp_path, host):
    (tmp_path / 'a.pth.part').write_bytes(BYTES)
    assert get(f'{host}/good/a', tmp_path / 'a.pth').read_bytes() == BYTES


@pytest.mark.parametrize('junk', [bytes(100_000), bytes(400_000)])
def test_a_part_of_another_file(tmp_path, host, junk):
    (tmp_path / 'a.pth.part').write_bytes(junk)
    assert get(f'{host}/good/a', tmp_path / 'a.pth').read_bytes() == BYTES


def test_a_claim_that_is_too_long_is_forgiven_when_the_hash_is_right(tmp_path, host):
    assert get(f'{host}/long/a', tmp_path / 'a.pth').read_bytes() == BYTES


@pytest.mark.parametrize('kind', ['short', 'wrong'])
def test_the_hash_decides(tmp_path, host, kind):
    with pytest.raises(UserError, match='nothing was kept'): get(f'{host}/{kind}/a', tmp_path / 'a.pth')
    assert not list(tmp_path.glob('a*'))


@pytest.mark.parametrize('code', ['404', '403'])
def test_gone(tmp_path, host, code):
    with pytest.raises(UserError, match=f'gone or closed .*{code}.*by hand'): get(f'{host}/{code}/a', tmp_path / 'a.pth')
    assert len(Server.log) == 1


def test_a_server_in_trouble_is_asked_again(tmp_path, host):
    with pytest.raises(UserError, match='500'): get(f'{host}/500/a', tmp_path / 'a.pth', tries=3)
    assert len(Server.log) == 3


def test_no_ranges(tmp_path, host, monkeypatch):
    monkeypatch.setattr(Server, 'ranges', False)
    with pytest.raises(UserError, match='broke after 70,000 of 300,000'): get(f'{host}/break/a', tmp_path / 'a.pth', tries=3)
    (tmp_path / 'b.pth.part').write_bytes(BYTES[:5])
    assert get(f'{host}/good/a', tmp_path / 'b.pth').read_bytes() == BYTES


@pytest.mark.parametrize('algorithm, keep', [('sha256', 64), ('sha256', 8), ('sha384', 96), ('md5', 32)])
def test_hashes_and_prefixes(tmp_path, host, algorithm, keep):
    digest = hashlib.new(algorithm, BYTES).hexdigest()[:keep]
    get(f'{host}/good/a', tmp_path / 'a.pth', digest.upper(), algorithm=algorithm)
    with pytest.raises(UserError, match='remove it to fetch it again'): get(f'{host}/good/a', tmp_path / 'a.pth', '0' * keep, algorithm=algorithm)


def test_two_at_once(tmp_path, host):
    jobs = [threading.Thread(target=get, args=(f'{host}/break/a', tmp_path / 'a.pth')) for _ in range(4)]
    for j in jobs: j.start()
    for j in jobs: j.join()
    assert (tmp_path / 'a.pth').read_bytes() == BYTES and len(Server.log) == 5  # one fetched, three waited


def test_a_name_is_enough(tmp_path, host, monkeypatch, capsys):
    good = d.Source('good.pth', f'{host}/break/good.pth', f'sha256:{SHA256[:8]}', 'x', 'y')
    monkeypatch.setattr(d, 'SOURCES', dict(good=good, bad=d.Source('bad.pth', f'{host}/404/bad.pth', 'md5:00', 'x', 'y')))
    w.hrnet_weights('download', 'good', folder=str(tmp_path))
    printed = capsys.readouterr()
    assert 'verified' in printed.out and '300k/300k' in printed.err  # the bar
    assert (tmp_path / 'good.pth').read_bytes() == BYTES
    with pytest.raises(SystemExit) as e: w.hrnet_weights('download', 'bad', folder=str(tmp_path))
    assert e.value.code == 1 and 'gone or closed' in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert d.find_weights('good') == Path('pretrained/good.pth')  # `weights='good'` fetches what is not there


def test_the_table_is_complete():
    for name, s in d.SOURCES.items():
        assert not s.url or s.url.startswith(('https://', 'hf://')), name
        assert s.digest or s.url.startswith('hf://') or not s.url, name
        assert s.url.endswith(s.file) or s.url.startswith('hf://') or not s.url, name
    assert len({s.file for s in d.SOURCES.values()}) == len(d.SOURCES)
