package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/rota"
)

// Among several nodes each has a configuration file, and what they decide by is one. A file speaks when it was edited: when a node reads
// it again and finds another one, and when a node starts with another one than it had when it last ran. So the last edit counts, wherever it was made, and
// neither a change of leader nor the loss of all others brings an older file back. Where there never was another node, the file always
// speaks.

// spokenFile keeps what is known of the file that this node last had.
const spokenFile = "spoken.json"

// fingerprint tells one configuration from another in two ways: by what it means for decisions, which leaves out who and where the node
// is, and by what stands in its files. An edit changes both; a newer version of rota may read another meaning out of the same files, and
// that is no edit.
type fingerprint struct {
	Meaning string `json:"meaning"`
	Files   string `json:"files"`
}

func fingerprintOf(cfg *config.Config) (fingerprint, error) {
	spec := specOf(cfg)
	spec.Vantages = nil
	b, err := json.Marshal(struct {
		Spec   rota.Spec
		Agents []config.Agent
		Nodes  bool
	}{spec, cfg.Agents, cfg.NodesVote})
	if err != nil {
		return fingerprint{}, err
	}
	sum := sha256.Sum256(b)
	return fingerprint{hex.EncodeToString(sum[:]), cfg.Sources.Fingerprint()}, nil
}

// specOf returns what a configuration means for decisions, now.
func (n *node) specOf(cfg *config.Config) rota.Spec {
	spec := specOf(cfg)
	spec.Vantages = n.vantagesOf(n.raft.State(), cfg)
	return spec
}

// alone reports whether no other node's file could matter: there is none, and never was.
func (n *node) alone() bool {
	if n.net == nil {
		return true
	}
	st := n.raft.State()
	return len(n.raft.Members()) == 1 && len(st.Nodes()) <= 1 && len(st.Removed()) == 0
}

// spoke notes that the node has this file. A note that cannot be written makes the file count as edited at the next start; that stops
// nothing now.
func (n *node) spoke(cfg *config.Config) {
	if n.net == nil {
		return
	}
	path := filepath.Join(n.dir, spokenFile)
	now, err := fingerprintOf(cfg)
	if err == nil {
		if had, err := n.spoken(); err == nil && had == now {
			return
		}
		var b []byte
		if b, err = json.Marshal(now); err == nil {
			_, err = keep(path, bytes.NewReader(append(b, '\n')))
		}
	}
	if err != nil {
		n.log.Error("what this node's configuration file says could not be noted; at its next start the file counts as edited", "file", path, "error", err)
	}
}

// spoken returns what was noted last.
func (n *node) spoken() (f fingerprint, err error) {
	path := filepath.Join(n.dir, spokenFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// edited reports whether the file is another one than this node had when it last ran. A node that has just joined had none: its file
// does not speak.
func (n *node) edited(cfg *config.Config) (bool, error) {
	had, err := n.spoken()
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	now, err := fingerprintOf(cfg)
	return now.Meaning != had.Meaning && now.Files != had.Files, err
}

// speaks reports whether reading the file again puts it in force: when it was edited, or nobody else's could matter. What cannot be told
// counts as edited, since somebody asked for it.
func (n *node) speaks(cfg *config.Config) bool {
	edited, err := n.edited(cfg)
	return edited || err != nil || n.alone()
}

// difference is what was last found of a configuration and the services in force. It is immutable.
type difference struct {
	of   *config.Config
	in   []rota.Service
	text string
}

// differs says that this node's file is not what is in force, or nothing.
func (n *node) differs() string {
	cfg, in := n.current.Load().cfg, n.raft.State().Spec()
	if n.net == nil || len(in.Services) == 0 {
		return ""
	}
	if d := n.differed.Load(); d != nil && d.of == cfg && sameSlice(d.in, in.Services) {
		return d.text
	}
	d := &difference{of: cfg, in: in.Services}
	spec := specOf(cfg)
	spec.Vantages, in.Vantages = nil, nil
	if same, err := sameSpec(spec, in); err == nil && !same {
		d.text = "the configuration file of this node differs from the configuration in force, which was edited on another node, restored, or read by another version of rota: " +
			"make the files equal, or edit this one for it to count"
	}
	n.differed.Store(d)
	return d.text
}

// speakAgain is how soon a file that was edited while the node was down is said again when nobody could order it.
const speakAgain = 2 * time.Second

// speak puts the file of a node that starts in force if it was edited while the node was down.
func (n *node) speak(ctx context.Context) error {
	n.reloading.Lock()
	cfg := n.current.Load().cfg
	edited, err := n.edited(cfg)
	switch {
	case err != nil:
		// What was there before is not known. To believe an older file would be worse than to ask for another edit.
		n.log.Error("whether the configuration file was edited while this node was down is not known, so it is taken not to be; if it was, reload it", "error", err)
		fallthrough
	case !edited:
		n.spoke(cfg)
	}
	n.reloading.Unlock()
	for edited {
		n.reloading.Lock()
		now := n.current.Load().cfg
		err := n.respec(ctx, now)
		if err == nil {
			n.spoke(now)
		}
		n.reloading.Unlock()
		if err == nil {
			n.log.Info("configuration in force", "because", "the file was edited while this node was down", "services", len(now.Spec.Services))
			break
		}
		n.log.Warn("the configuration was edited while this node was down and could not be put in force yet", "again_in", speakAgain, "error", err)
		if err := pause(ctx, speakAgain, nil); err != nil {
			return nil
		}
	}
	<-ctx.Done()
	return nil
}
