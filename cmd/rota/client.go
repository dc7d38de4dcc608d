package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rota-dns/rota/internal/api"
)

// client speaks to the API of a running rota.
type client struct {
	http  *http.Client
	base  string // without a path
	where string // for people
	token string
	quiet bool  // no hint about starting rota: the address was given
	guess error // why the data directory is not known to be the one that was meant

	stale func(since time.Time) // told when an answer may be older than the cluster's state
}

const maxReply = 256 << 20 // bytes of an answer

// client makes a client of the address in --addr or ROTA_ADDR, else of the socket in the data directory.
func (a *app) client() (*client, error) {
	c := &client{http: &http.Client{}}
	var once sync.Once
	c.stale = func(since time.Time) {
		once.Do(func() { _, _ = fmt.Fprintln(a.err, "rota: "+staleWords(since, a.now())) })
	}
	var err error
	if c.token, err = a.token(); err != nil {
		return nil, err
	}
	addr := cmp.Or(a.addr, a.getenv("ROTA_ADDR"))
	c.quiet = addr != ""
	if addr == "" {
		dir, guess := a.dataDirectory()
		addr, c.guess = "unix://"+filepath.Join(dir, api.SocketName), guess
	}
	u, err := url.Parse(addr)
	if err != nil {
		return nil, usagef("--addr %q: want unix:///PATH, http://HOST:PORT or https://HOST:PORT", addr)
	}
	transport := &http.Transport{ResponseHeaderTimeout: 30 * time.Second, TLSHandshakeTimeout: 10 * time.Second}
	c.http.Transport = transport
	c.where = addr
	switch {
	case u.Scheme == "unix" && u.Host+u.Path != "":
		path := u.Host + u.Path
		c.base, c.where = "http://rota", path
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		c.base = u.Scheme + "://" + u.Host
		transport.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
		if u.Scheme == "http" && c.token != "" && !loopback(u.Hostname()) {
			return nil, usagef("--addr %s: a token would travel in clear text; use https", addr)
		}
	default:
		return nil, usagef("--addr %q: want unix:///PATH, http://HOST:PORT or https://HOST:PORT", addr)
	}
	return c, nil
}

// servers are the hosts the client speaks to, none for a socket: the way to them shows this machine's addresses.
func (c *client) servers() []string {
	if u, err := url.Parse(c.base); err == nil && u.Host != "rota" {
		return []string{u.Host}
	}
	return nil
}

// staleWords says since when what is shown may be older than the cluster's state.
func staleWords(since, now time.Time) string {
	return fmt.Sprintf("what this node knows may be older than the cluster's state, since %s (%s)", since.UTC().Format("2006-01-02 15:04:05Z"), age(since, now))
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// token reads the bearer token from ROTA_TOKEN or the file that ROTA_TOKEN_FILE names; never from a flag, which others could see.
func (a *app) token() (string, error) {
	if t := a.getenv("ROTA_TOKEN"); t != "" {
		return t, nil
	}
	path := a.getenv("ROTA_TOKEN_FILE")
	if path == "" {
		return "", nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("ROTA_TOKEN_FILE: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// dataDirectory is where a rota on this machine keeps its socket, unless told otherwise: that of the configuration, when it can be
// read. When it cannot, the error is why, and the usual ones are tried, for what is asked may not need it.
func (a *app) dataDirectory() (dir string, guess error) {
	if a.dataDir != "" {
		return a.dataDir, nil
	}
	dir, guess = a.configuredDataDir()
	if usual, err := filepath.Abs("rota-data"); dir != "" && (err != nil || dir != usual) {
		return dir, nil
	}
	if dir := a.getenv("STATE_DIRECTORY"); dir != "" {
		return dir, guess
	}
	// A service has its directory from systemd, which no file says.
	for _, dir := range []string{"rota-data", "/var/lib/rota"} {
		if _, err := os.Stat(filepath.Join(dir, api.SocketName)); err == nil {
			return dir, guess
		}
	}
	return "rota-data", guess
}

// problem is an error answer of the API (RFC 9457).
type apiProblem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Errors []struct {
		Message  string `json:"message"`
		Location string `json:"location"`
	} `json:"errors"`
}

func (p *apiProblem) Error() string {
	s := cmp.Or(p.Detail, p.Title, fmt.Sprintf("HTTP status %d", p.Status))
	for _, e := range p.Errors {
		s += fmt.Sprintf("; %s: %s", e.Location, e.Message)
	}
	return s
}

func (p *apiProblem) code() int {
	switch p.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitDenied
	case http.StatusConflict:
		return exitHeld
	case http.StatusServiceUnavailable:
		return exitNoLeader
	case http.StatusBadRequest:
		return exitUsage
	}
	return exitFailed
}

// request sends one request; the caller closes the answer's body. Answers that are no success become errors with an exit code.
func (c *client) request(ctx context.Context, method, path string, query url.Values, in any, header ...string) (*http.Response, error) {
	if in == nil {
		return c.send(ctx, method, path, query, nil, 0, header...)
	}
	b, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	return c.send(ctx, method, path, query, bytes.NewReader(b), int64(len(b)), append(header, "Content-Type", "application/json")...)
}

// send is request with a body of a given size.
func (c *client) send(ctx context.Context, method, path string, query url.Values, body io.Reader, size int64, header ...string) (*http.Response, error) {
	target := c.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	r.ContentLength = size
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, c.explainDial(err)
	}
	if since, err := http.ParseTime(resp.Header.Get("Rota-State-Since")); err == nil && c.stale != nil {
		c.stale(since)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	p := &apiProblem{Status: resp.StatusCode}
	_ = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(p)
	p.Status = resp.StatusCode
	if p.Status == http.StatusUnauthorized {
		return nil, &coded{p.code(), c.explainToken(p)}
	}
	return nil, &coded{p.code(), p}
}

// explainToken says how a token is given.
func (c *client) explainToken(p *apiProblem) error {
	if c.token != "" {
		return fmt.Errorf("%s: %w; the token comes from ROTA_TOKEN or the file that ROTA_TOKEN_FILE names", c.where, p)
	}
	return fmt.Errorf("%s: this needs a token (api.tokens in its configuration): put it into ROTA_TOKEN, or into a file and the file's path into"+
		" ROTA_TOKEN_FILE; on the machine itself leave out --addr and the unix socket is used", c.where)
}

// explainDial says what to do when nobody answers.
func (c *client) explainDial(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case !c.quiet && c.guess != nil && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)):
		return fmt.Errorf("no rota runs with data directory %s, and whether that is the right one is not known: %w; name it by --data-dir",
			filepath.Dir(c.where), c.guess)
	case !c.quiet && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)):
		return fmt.Errorf("no rota runs with data directory %s: start it with `rota run`, or name another by --data-dir or --addr", filepath.Dir(c.where))
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody answers at %s: start rota there with `rota run`, or name another by --addr", c.where)
	case errors.Is(err, fs.ErrPermission):
		return &coded{exitDenied, fmt.Errorf("%s may be used by its owner and group only: become one of them, or use --addr with a token", c.where)}
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return fmt.Errorf("%s: %w", c.where, err)
}

// raw returns an answer's bytes.
func (c *client) raw(ctx context.Context, path string, query url.Values) ([]byte, error) {
	resp, err := c.request(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	return io.ReadAll(io.LimitReader(resp.Body, maxReply))
}

// get reads a path into out.
func (c *client) get(ctx context.Context, path string, query url.Values, out any) error {
	b, err := c.raw(ctx, path, query)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s%s answers what this version of the command cannot read: %w", c.where, path, err)
	}
	return nil
}

// follow reads an event stream and calls f with each event until ctx ends, the stream breaks or f fails.
func (c *client) follow(ctx context.Context, query url.Values, last string, f func(id string, data []byte) error) error {
	header := []string{"Accept", "text/event-stream"}
	if last != "" {
		header = append(header, "Last-Event-ID", last)
	}
	resp, err := c.request(ctx, http.MethodGet, "/api/v1/events", query, nil, header...)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 64<<20)
	var id string
	var data []byte
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case lines.Text() == "" && data != nil:
			if err := f(id, data); err != nil {
				return err
			}
			data = nil
		case field == "id":
			id = value
		case field == "data":
			data = []byte(value)
		}
	}
	if err := lines.Err(); err != nil && ctx.Err() == nil {
		return &brokenStream{fmt.Errorf("%s: the event stream broke off: %w", c.where, err)}
	}
	return nil
}

// brokenStream is a stream that ended in the middle; it can be resumed.
type brokenStream struct{ error }
