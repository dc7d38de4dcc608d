package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Bounds and pacing of HealthdClient; the times are a healthagent's.
const (
	SyncEvery     = 30 * time.Second // between questions for the monitors
	clientTimeout = 3 * time.Second  // of a request
	maxList       = 16 << 20         // bytes of a list of monitors
	maxListed     = 100_000          // monitors in it
)

// HealthdClient is a healthd as an agent sees it: rota's agent does there what a healthagent would. It asks for the monitors every
// SyncEvery and posts the status of each, in the list's order; one that is unknown, or that this version cannot check, is posted as a
// healthagent posts what it has not checked yet, which healthd's readers count as not healthy. Not for use by two agents.
type HealthdClient struct {
	Client *http.Client // with the certificate that carries Name; see ClientTLS
	URL    string       // of healthd, such as https://10.0.0.1
	Name   string       // as in the certificate
	Timing rota.Timing  // of the checks; the zero value is a healthagent's: every second, one failed check is down
	Log    *slog.Logger // nil: silent

	mu       sync.Mutex // guards what follows
	listed   []listed
	healthy  []bool // as last posted and taken, by place in listed
	warned   string // fingerprint of the list whose gaps were told
	asked    time.Time
	finished string // fingerprint of listed
}

// listed is one monitor as healthd names it.
type listed struct {
	addr   netip.AddrPort
	target rota.TargetID // empty: nothing to probe
	always bool          // the protocol "none": up without a check
}

func (c *HealthdClient) String() string { return c.URL }

// Targets asks healthd for the monitors; when the list is known, not before SyncEvery has passed since the last time.
func (c *HealthdClient) Targets(ctx context.Context, known Table) (Table, error) {
	c.mu.Lock()
	due := c.asked.Add(SyncEvery)
	if known.Fingerprint == "" || known.Fingerprint != c.finished {
		due = time.Time{}
	}
	c.mu.Unlock()
	sleep(ctx, time.Until(due))
	body, err := c.do(ctx, http.MethodGet, nil)
	if err != nil {
		return Table{}, err
	}
	var words []string
	if err := json.Unmarshal(body, &words); err != nil {
		return Table{}, fmt.Errorf("monitors of %s: want an array of strings: %w", c.URL, err)
	}
	if words == nil || len(words) > maxListed {
		return Table{}, fmt.Errorf("monitors of %s: want an array of at most %d", c.URL, maxListed)
	}
	sum := sha256.Sum256(body)
	t := Table{Fingerprint: hex.EncodeToString(sum[:16])}
	list := make([]listed, len(words))
	targets := map[rota.TargetID]bool{}
	var cannot []string
	for i, w := range words {
		target, l, err := c.parse(w)
		if err != nil {
			cannot = append(cannot, rota.CleanReason("%s: %v", w, err))
		}
		list[i] = l
		if l.target != "" && !targets[l.target] {
			targets[l.target] = true
			t.Targets = append(t.Targets, target)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = time.Now()
	if len(cannot) > 0 && c.warned != t.Fingerprint && c.Log != nil {
		c.warned = t.Fingerprint
		c.Log.Warn("monitors of healthd that cannot be checked", "healthd", c.URL, "monitors", len(cannot), "first", cannot[0])
	}
	if c.finished != t.Fingerprint {
		c.listed, c.healthy, c.finished = list, make([]bool, len(list)), t.Fingerprint
	}
	return t, nil
}

// parse reads a monitor: none, tcp or http, ://, address and port.
func (c *HealthdClient) parse(word string) (rota.Target, listed, error) {
	proto, rest, ok := strings.Cut(word, "://")
	if !ok {
		return rota.Target{}, listed{}, fmt.Errorf("want proto://ip:port")
	}
	at, err := netip.ParseAddrPort(rest)
	if err != nil {
		return rota.Target{}, listed{}, err
	}
	check := rota.Check{Name: word, Port: at.Port(), Timing: c.Timing}
	if check.Timing == (rota.Timing{}) {
		check.Timing = rota.Timing{Interval: time.Second, FastInterval: time.Second, Timeout: time.Second, Fall: 1, Rise: 1, OK: 1}
	}
	switch proto {
	case "none":
		return rota.Target{}, listed{addr: at, always: true}, nil
	case "tcp":
		check.Kind = rota.KindTCP
	case "http":
		check.Kind, check.Path, check.Status = rota.KindHTTP, "/healthz", []rota.StatusRange{{From: 200, To: 299}}
	default:
		return rota.Target{}, listed{}, fmt.Errorf("want none, tcp or http")
	}
	t := rota.NewTarget(at.Addr().Unmap(), check)
	return t, listed{addr: at, target: t.ID}, nil
}

// Report posts the statuses. A body that healthd would refuse for its size is sent without messages.
func (c *HealthdClient) Report(ctx context.Context, _ *rota.Table, r *rota.Report) error {
	c.mu.Lock()
	list, before, mark := c.listed, c.healthy, c.finished
	c.mu.Unlock()
	if mark == "" { // this one was not asked for the monitors yet, since the agent has them of another; they may not be the same
		t, err := c.Targets(ctx, Table{})
		if err != nil {
			return err
		}
		c.mu.Lock()
		list, before, mark = c.listed, c.healthy, t.Fingerprint
		c.mu.Unlock()
	}
	statuses := make([]status, len(list))
	healthy := make([]bool, len(list))
	for i, l := range list {
		s := status{IP: l.addr.Addr().String(), Port: int(l.addr.Port()), Message: "success"}
		switch {
		case l.always:
			s.Healthy = true
		case l.target == "":
			continue
		default:
			o := r.Opinion(l.target)
			if o == nil || o.Status == rota.Unknown {
				continue
			}
			if s.Healthy = o.Status == rota.Up; !s.Healthy {
				s.Message = o.Reason
			}
		}
		healthy[i] = s.Healthy
		s.DidChange = s.Healthy != before[i]
		statuses[i] = s
	}
	body, err := json.Marshal(statuses)
	if err == nil && len(body) > maxPost {
		for i := range statuses {
			statuses[i].Message = ""
		}
		body, err = json.Marshal(statuses)
	}
	if err != nil {
		return err
	}
	if len(body) > maxPost {
		return fmt.Errorf("the statuses of %d monitors take %d bytes, and healthd accepts %d: give it fewer monitors", len(list), len(body), maxPost)
	}
	if _, err := c.do(ctx, http.MethodPost, body); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished == mark {
		c.healthy = healthy
	}
	return nil
}

// do sends one request and returns the body of its answer.
func (c *HealthdClient) do(ctx context.Context, method string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.URL, "/")+"/", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set(agentHeader, c.Name)
	resp, err := c.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, ReadRefusal(resp)
	}
	out, err := io.ReadAll(io.LimitReader(resp.Body, maxList+1))
	if err == nil && len(out) > maxList {
		err = fmt.Errorf("healthd %s: its answer has more than %d bytes", c.URL, maxList)
	}
	return out, err
}
