package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/rota"
)

// Among several nodes each has a configuration file, and what they decide by is one. A file speaks when it was edited: when a node reads
// it again, and when a node starts with another file than it had when it last ran. So the last edit counts, wherever it was made, and a
// change of leader brings no older file back. Alone the file always speaks.

// spokenFile keeps the fingerprint of the file that this node last had.
const spokenFile = "spoken"

// specOf returns what a configuration means for decisions, now.
func (n *node) specOf(cfg *config.Config) rota.Spec {
	spec := specOf(cfg)
	spec.Vantages = n.vantagesOf(n.raft.State(), cfg)
	return spec
}

// fingerprint tells whether a configuration was edited. Who and where the node is does not count.
func fingerprint(cfg *config.Config) (string, error) {
	spec := specOf(cfg)
	spec.Vantages = nil
	b, err := json.Marshal(struct {
		Spec   rota.Spec
		Agents []config.Agent
		Nodes  bool
	}{spec, cfg.Agents, cfg.NodesVote})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// alone reports whether no other node's file could matter.
func (n *node) alone() bool { return n.net == nil || len(n.raft.Members()) < 2 }

// spoke notes that the node has this file.
func (n *node) spoke(cfg *config.Config) error {
	sum, err := fingerprint(cfg)
	if err != nil || n.net == nil {
		return err
	}
	path := filepath.Join(n.dir, spokenFile)
	if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == sum {
		return nil
	}
	if err := os.WriteFile(path+".tmp", []byte(sum+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// edited reports whether the file is another one than this node had when it last ran. A node that has just joined had none: its file
// does not speak.
func (n *node) edited(cfg *config.Config) (bool, error) {
	b, err := os.ReadFile(filepath.Join(n.dir, spokenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	sum, err := fingerprint(cfg)
	return strings.TrimSpace(string(b)) != sum, err
}

// differs says that this node's file is not what is in force, or nothing.
func (n *node) differs() string {
	now := n.current.Load()
	spec := n.specOf(now.cfg)
	in := n.raft.State().Spec()
	if len(in.Services) == 0 {
		return ""
	}
	spec.Vantages, in.Vantages = nil, nil
	if same, err := sameSpec(spec, in); err != nil || same {
		return ""
	}
	return "the configuration file of this node differs from the configuration in force, which was edited on another node: " +
		"make the files equal, or edit this one for it to count"
}

// speakAgain is how soon a file that was edited while the node was down is said again when nobody could order it.
const speakAgain = 2 * time.Second

// speak puts the file of a node that starts in force if it was edited while the node was down.
func (n *node) speak(ctx context.Context) error {
	cfg := n.current.Load().cfg
	edited, err := n.edited(cfg)
	if err != nil {
		return err
	}
	for edited {
		n.reloading.Lock()
		now := n.current.Load().cfg
		err := n.respec(ctx, now)
		if err == nil {
			err = n.spoke(now)
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
	if !edited {
		if err := n.spoke(cfg); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(n.dir, spokenFile), err)
		}
	}
	<-ctx.Done()
	return nil
}
