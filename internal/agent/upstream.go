package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// The paths that a node offers agents, and the header with an agent's site.
const (
	TargetsPath = "/v1/targets"
	ReportPath  = "/v1/report"
	SiteHeader  = "Rota-Site"
)

// Bounds of what one side takes from the other.
const (
	maxTable    = 256 << 20 // bytes of targets
	maxReport   = 64 << 20  // bytes of a report
	maxRefusal  = 4 << 10   // bytes read of an answer that says no
	waitForNews = 10 * time.Second
)

// tableBody is the answer to a question for the targets.
type tableBody struct {
	Fingerprint string        `json:"fingerprint"`
	Lead        string        `json:"lead"`
	Targets     []rota.Target `json:"targets,omitempty"`
}

// HTTPUpstream is a node as an agent sees it.
type HTTPUpstream struct {
	Client *http.Client // proves who the agent is, and knows whom to trust
	Base   string       // such as https://10.0.0.1:3648
	Site   string       // of the agent; empty: what the configuration says
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
		q.Set("lead", known.Lead)
		q.Set("wait", strconv.Itoa(int(waitForNews/time.Second)))
		req.URL.RawQuery = q.Encode()
	}
	resp, err := u.Client.Do(req)
	if err != nil {
		return Table{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Table{}, refused(resp)
	}
	var t tableBody
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxTable)).Decode(&t); err != nil {
		return Table{}, fmt.Errorf("targets of %s: %w", u.Base, err)
	}
	if t.Fingerprint != known.Fingerprint {
		t.Targets = slices.DeleteFunc(t.Targets, func(t rota.Target) bool { return !understood(t) })
	}
	return Table(t), nil
}

// understood reports whether this version would ask what the target's name says. A later version's check may hold more than is known
// here; to ask less than that is to answer another question.
func understood(t rota.Target) bool {
	return slices.Contains(rota.Kinds(), t.Check.Kind) && t.Address.IsValid() && rota.NewTarget(t.Address, t.Check).ID == t.ID
}

// Report sends the node a report.
func (u *HTTPUpstream) Report(ctx context.Context, r *rota.Report) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.Base+ReportPath, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if u.Site != "" {
		req.Header.Set(SiteHeader, u.Site)
	}
	resp, err := u.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNoContent:
		return nil
	case http.StatusConflict:
		return fmt.Errorf("%w (%w)", ErrOvertaken, refused(resp))
	}
	return refused(resp)
}

// refused makes an error of an answer that says no.
func refused(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	return errors.New(rota.CleanReason("%s: %s", resp.Status, strings.TrimSpace(string(text))))
}
