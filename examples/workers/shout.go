// A worker in Go: a JSON line a job in, a JSON line out. docs/workers.md says what stands in them.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strconv"
	"strings"
)

type job struct {
	ID      string
	Payload json.RawMessage
	State   map[string]string
}

type answer struct {
	ID    string            `json:"id"`
	OK    *shouted          `json:"ok,omitempty"`
	Set   map[string]string `json:"set,omitempty"`
	Error string            `json:"error,omitempty"`
}

type shouted struct {
	Seen int    `json:"seen"`
	Text string `json:"text"`
}

func do(j job) answer {
	var payload struct{ Text *string }
	if json.Unmarshal(j.Payload, &payload) != nil || payload.Text == nil {
		return answer{ID: j.ID, Error: "text is missing"}
	}
	seen, _ := strconv.Atoi(j.State["seen"])
	seen++
	return answer{
		ID:  j.ID,
		OK:  &shouted{seen, strings.ToUpper(*payload.Text)},
		Set: map[string]string{"seen": strconv.Itoa(seen)},
	}
}

func main() {
	in, out := bufio.NewReader(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var j job
		a := answer{}
		if err := json.Unmarshal(line, &j); err != nil {
			// The line begins with {"id":"…": a job that Go cannot read fails by that, and takes no worker along.
			a = answer{ID: string(line[7:39]), Error: err.Error()}
		} else {
			a = do(j)
		}
		if out.Encode(a) != nil {
			os.Exit(1)
		}
	}
}
