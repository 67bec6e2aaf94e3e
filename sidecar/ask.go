package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

const (
	askTimeout    = 5 * time.Second
	maxStatusBody = 64 << 20
)

// question is a command that asks a running sidecar at its administration port, and prints what it says.
type question struct {
	environ []string
	admin   string
	form    string
}

// command makes the command, with the flags that all of them have.
func (q *question) command(use, short string, args cobra.PositionalArgs, run func(*cobra.Command, []string) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		switch q.form {
		case "table", "wide", "json", "yaml":
			return run(cmd, args)
		}
		return fmt.Errorf("-o %s is not understood: table, wide, json or yaml", q.form)
	}}
	cmd.Flags().StringVar(&q.admin, "admin", adminURL(q.environ), "URL of the sidecar's administration port; of a pod: kubectl port-forward POD 18090")
	cmd.Flags().StringVarP(&q.form, "output", "o", "table", "table, wide, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "wide", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// ask reads what a running sidecar answers.
func (q *question) ask(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	url := strings.TrimSuffix(q.admin, "/") + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return fmt.Errorf("ask the sidecar at %q: %w", q.admin, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask the sidecar (is it running here? --admin says where): %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusBadRequest {
		words, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return fmt.Errorf("the sidecar does not understand: %s", strings.TrimSpace(string(words)))
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the sidecar: GET %s: %s; is this its administration port?", url, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxStatusBody)).Decode(into); err != nil {
		return fmt.Errorf("read the answer of %s: %w", url, err)
	}
	return nil
}

// wide says that the table may have more columns.
func (q *question) wide() bool { return q.form == "wide" }

// print writes a value as it was asked for; table writes it for people.
func (q *question) print(to io.Writer, v any, table func() error) error {
	switch q.form {
	case "json":
		encoder := json.NewEncoder(to)
		encoder.SetIndent("", "  ")
		return encoder.Encode(v)
	case "yaml":
		text, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = to.Write(text)
		return err
	}
	return table()
}
