package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Bounds of what one side takes from the other.
const (
	maxTable    = 256 << 20 // bytes of targets
	maxRefusal  = 4 << 10   // bytes read of an answer that says no
	maxNodes    = 64        // addresses of nodes told to an agent
	waitForNews = 10 * time.Second
)

// tableBody is the answer to a question for the targets.
type tableBody struct {
	Fingerprint string        `json:"fingerprint"`
	Pace        string        `json:"pace,omitempty"` // of the targets that are lazy
	Lead        string        `json:"lead"`
	Nodes       []string      `json:"nodes,omitempty"`
	Targets     []rota.Target `json:"targets,omitempty"`
}

// HTTPUpstream is a node as an agent sees it.
type HTTPUpstream struct {
	Client *http.Client         // proves who the agent is, and knows whom to trust
	Base   string               // such as https://10.0.0.1:3648
	Site   string               // of the agent; empty: what the configuration says
	Nodes  func(nodes []string) // told with each answer where the cluster's nodes are, at most 64 and never none; nil: nobody asks
}

func (u *HTTPUpstream) String() string { return u.Base }

// Targets asks the node for its table, and waits there for a change of what is known.
func (u *HTTPUpstream) Targets(ctx context.Context, known Table) (Table, error) {
	if known.Fingerprint != "" { // a node that hangs is found out soon; a whole table may take longer
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, waitForNews+5*time.Second)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.Base+TargetsPath, nil)
	if err != nil {
		return Table{}, err
	}
	if known.Fingerprint != "" {
		q := req.URL.Query()
		q.Set("known", known.Fingerprint)
		q.Set("pace", known.Pace)
		q.Set("lead", known.Lead)
		if known.Lead != "" {
			q.Set("wait", strconv.Itoa(int(waitForNews/time.Second)))
		}
		req.URL.RawQuery = q.Encode()
	}
	resp, err := u.Client.Do(req)
	if err != nil {
		return Table{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Table{}, ReadRefusal(resp)
	}
	var b tableBody
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxTable)).Decode(&b); err != nil {
		return Table{}, fmt.Errorf("targets of %s: %w", u.Base, err)
	}
	if len(b.Nodes) > 0 && u.Nodes != nil {
		u.Nodes(b.Nodes[:min(len(b.Nodes), maxNodes)])
	}
	t := Table{Fingerprint: b.Fingerprint, Pace: b.Pace, Lead: b.Lead}
	if b.Fingerprint == known.Fingerprint && b.Targets == nil {
		return t, nil
	}
	t.Given = rota.TableOf(b.Targets) // those too that are not understood: a report has a place for each
	if got := t.Given.Fingerprint().String(); got != b.Fingerprint {
		return Table{}, fmt.Errorf("targets of %s: their fingerprint is %s, and it says %s", u.Base, got, rota.CleanReason("%.64s", b.Fingerprint))
	}
	t.Targets = slices.DeleteFunc(b.Targets, func(t rota.Target) bool { return !understood(t) })
	return t, nil
}

// understood reports whether this version would ask what the target's name says. A later version's check may hold more than is known
// here; to ask less than that is to answer another question.
func understood(t rota.Target) bool {
	return slices.Contains(rota.Kinds(), t.Check.Kind) && t.Address.IsValid() && rota.NewTarget(t.Address, t.Check).ID == t.ID
}

// Report sends the node a report, packed.
func (u *HTTPUpstream) Report(ctx context.Context, t *rota.Table, r *rota.Report) error {
	h := http.Header{}
	if u.Site != "" {
		h.Set(SiteHeader, u.Site)
	}
	return PostReport(ctx, u.Client, u.Base, h, t.Pack(r))
}
